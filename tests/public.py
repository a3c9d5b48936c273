"""The public names: what a package lists in ``__all__``, and the public methods of the classes among it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import headstart as hs

PACKAGES = ("", "data", "errors", "evaluation", "export", "hypergradient", "inner", "losses", "models", "playing", "serving", "using")
"""What users import from; all else is of the inside."""
WITHOUT_SKLEARN = ("FewShotClassifier", "FewShotRegressor")


def modules() -> list[Any]:
    return [hs, *(importlib.import_module(m.name) for m in pkgutil.walk_packages(hs.__path__, "headstart.") if "__main__" not in m.name)]


def listed(package: Any) -> list[str]:
    """Names in ``__all__``, or else what the module itself makes public."""
    own = [n for n, v in vars(package).items() if not n.startswith("_") and getattr(v, "__module__", "").startswith("headstart")]
    extra = WITHOUT_SKLEARN if package is hs else ()
    return [*getattr(package, "__all__", own), *extra]


def public() -> dict[str, Any]:
    """Every public class and function once, by the shortest of its names."""
    found: dict[int, tuple[str, Any]] = {}
    for part in PACKAGES:
        package = importlib.import_module(f"headstart.{part}".rstrip("."))
        for name in listed(package):
            value = getattr(package, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(id(value), (f"{package.__name__}.{name}", value))
    return dict(found.values())


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of ours has, its bases' included."""
    for name in dir(cls):
        owners = [c for c in cls.__mro__ if name in vars(c)]
        if name.startswith("_") or not owners or not owners[0].__module__.startswith("headstart"):
            continue
        value = vars(owners[0])[name]
        function = value.fget if isinstance(value, property) else getattr(value, "func", getattr(value, "__func__", value))
        if inspect.isfunction(function):
            yield name, function
