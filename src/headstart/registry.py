"""Choices by name, beside whoever owns them: what Python offers, the command line offers too, and one's own as ``module:name``."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from headstart.errors import ConfigError

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories of one kind of part, by name.

    Args:
        what: what is chosen, as it stands in messages, such as ``"inner solver"``.

    Example:
        >>> shapes = Registry[int]("shape")
        >>> @shapes.register("square")
        ... def square(side: int = 2) -> int:
        ...     return side * side
        >>> shapes.build("square", side=3), shapes.names()
        (9, ('square',))
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """A decorator that enters a class or function under a name."""

        def enter(factory: Factory) -> Factory:
            self._factories[name] = factory
            return factory

        return enter

    def names(self) -> tuple[str, ...]:
        """The names there are."""
        return tuple(self._factories)

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __contains__(self, name: object) -> bool:
        return name in self._factories

    def find(self, name: str) -> Callable[..., T]:
        """The factory of a name, or of ``module:name`` anywhere on the path or in the present folder.

        Raises:
            ConfigError: there is no such name, module or attribute.
        """
        if name in self._factories:
            return self._factories[name]
        module, colon, attribute = name.partition(":")
        if not colon or not attribute:
            near = difflib.get_close_matches(name, self._factories, n=1)
            hint = f"did you mean {near[0]!r}? There are" if near else "use one of"
            raise ConfigError(f"{self.what} {name!r} is not known; {hint} {', '.join(self._factories)}, or your own as module:name")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.what} {name!r} cannot be loaded: {error}; give module:name of something that can be imported"
            ) from error
        if not callable(found):
            raise ConfigError(f"{self.what} {name!r} is a {type(found).__name__}; give a class or a function that returns one")
        return found  # type: ignore[no-any-return]

    def build(self, name: str, /, **options: Any) -> T:
        """What the factory of a name makes of options.

        Raises:
            ConfigError: the name or an option is not known.
        """
        factory = self.find(name)
        known = inspect.signature(factory).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for option in options:
            if option not in known and not open_ended:
                raise ConfigError(f"{self.what} {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
        return factory(**options)


def parse_options(text: str, setting: str = "options") -> dict[str, Any]:
    """``NAME=VALUE,NAME=VALUE`` taken apart; values are numbers, true, false, none, lists, tuples, dictionaries or text.

    Args:
        text: commas inside brackets or quotes belong to a value.
        setting: what to call it in messages.

    Raises:
        ConfigError: a part is not NAME=VALUE, or brackets do not close.

    Example:
        >>> parse_options("size=28,standardise=false,features=[a,b],name=x y")
        {'size': 28, 'standardise': False, 'features': ['a', 'b'], 'name': 'x y'}
    """
    found: dict[str, Any] = {}
    for part in _split(text, ",", setting):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{setting}={text!r}: {part!r} is not NAME=VALUE; write task=assay,target=active")
        found[name.strip()] = _value(value.strip(), setting)
    return found


def _value(text: str, setting: str) -> Any:
    plain = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text[:1] == "[" and text[-1:] == "]":
        return [_value(part.strip(), setting) for part in _split(text[1:-1], ",", setting)]
    return text


def _split(text: str, mark: str, setting: str) -> list[str]:
    """The parts between marks that stand in no brackets and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'" and (i == 0 or text[i - 1] in "=,[({: "):
            quote = c
        elif c in "[({":
            depth += 1
        elif c in "])}":
            depth -= 1
        elif c == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth or quote:
        raise ConfigError(f"{setting}={text!r}: brackets or quotes do not close")
    return [p for p in [*parts, text[start:]] if p.strip()]
