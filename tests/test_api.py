"""Every public name says what it does, with an example; the examples are run with the suite, as doctests."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path

import pytest

from public import methods, modules, public

PUBLIC = public()


def examples(text: str | None) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(text or "")


def used(text: str | None) -> set[str]:
    """The attributes that the examples of a docstring ask for, and the functions that they define."""
    found: set[str] = set()
    for example in examples(text):
        for node in ast.walk(ast.parse(example.source)):
            found |= {node.attr} if isinstance(node, ast.Attribute) else set()
            found |= {node.name} if isinstance(node, ast.FunctionDef) else set()
    return found


def test_all_that_is_listed_is_there() -> None:
    for module in modules():
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ lists {name!r}"


def test_the_list_is_of_the_public_names() -> None:
    assert len(PUBLIC) > 90
    assert {"headstart.MetaLearner", "headstart.anil", "headstart.FewShotClassifier", "headstart.losses.Loss"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_with_an_example(name: str) -> None:
    value = PUBLIC[name]
    assert value.__doc__, name
    assert examples(value.__doc__), f"{name} has no example"


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_public_methods_have_docstrings_and_are_shown(name: str) -> None:
    """In an example of the class or of one of its methods, or, where they stand in for a base's, in one of the base."""
    shown: set[str] = set()
    for cls in PUBLIC[name].__mro__:
        if cls.__module__.startswith("headstart"):
            shown |= used(cls.__doc__).union(*(used(function.__doc__) for _, function in methods(cls)))
    silent, hidden = [], []
    for method, function in methods(PUBLIC[name]):
        silent += [method] if not inspect.getdoc(getattr(PUBLIC[name], method, None)) and not function.__doc__ else []
        hidden += [method] if method not in shown and not examples(function.__doc__) else []
    assert not silent, f"{name} has methods without a docstring"
    assert not hidden, f"{name} has methods that no example shows"


def test_examples_are_collected_and_not_skipped() -> None:
    """Doctests of modules are run by the suite's settings; none may be marked as not to be run."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert "--doctest-modules" in text
    assert '"src"' in text
    for name, value in PUBLIC.items():
        assert not any(doctest.SKIP in e.options for e in examples(value.__doc__)), name
