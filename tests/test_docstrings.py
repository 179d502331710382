"""Every public name says what it takes, gives and raises, in numpydoc's sections, as its code has it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import pytest

from wustore import errors

MODULES = ("", ".work_unit", ".configuration", ".kbmod", ".xarray", ".backends", ".testing")
ERRORS = {name: getattr(errors, name) for name in errors.__all__}


def public():
    """Public functions, classes and methods that are ours, as name to object."""
    found = {}
    for module in MODULES:
        home = importlib.import_module(f"wustore{module}")
        for name in home.__all__:
            value = getattr(home, name)
            if not (inspect.isclass(value) or inspect.isroutine(value)) or not value.__module__.startswith("wustore"):
                continue
            found[f"{value.__module__}.{value.__qualname__}"] = value
            if inspect.isclass(value):
                for method, member in vars(value).items():
                    if method.startswith(("_", "test_")):
                        continue
                    function = getattr(member, "__func__", member)
                    if inspect.isfunction(function) or isinstance(function, property):
                        found[f"{value.__module__}.{value.__qualname__}.{method}"] = function
    return found


PUBLIC = public()


def section(text, name):
    """The lines of a section of a docstring, or None if it is not there."""
    match = re.search(rf"^{name}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return match and match[1]


def listed(text, name):
    """The names that a section describes, in its order."""
    heads = re.findall(r"^([*\w][\w, *]*)(?: :.*)?$", section(text, name) or "", re.MULTILINE)
    return [one.strip().lstrip("*") for head in heads for one in head.split(",")]


def parameters(value):
    names = inspect.signature(value).parameters
    return [name for name in names if name not in {"self", "cls"} and not name.startswith("_")]


def raised(function):
    """Our errors that the body of a function raises itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError):
        return set()
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    names = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return names & set(ERRORS)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text, "nothing is said"
    summary = text.partition("\n\n")[0]
    assert summary.endswith((".", "?")), summary
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return
    if inspect.isclass(value):
        if dataclasses.is_dataclass(value):
            assert set(listed(text, "Attributes")) == {field.name for field in dataclasses.fields(value)}
        else:
            assert set(parameters(value)) <= {
                *listed(text, "Parameters"),
                *listed(text, "Attributes"),
                "args",
                "kwargs",
            }
        return
    documented = listed(text, "Parameters")
    if name.startswith("wustore.testing."):  # helpers of tests: one sentence names the parameters
        return
    assert sorted(documented) == sorted(parameters(value)), "parameters"
    annotation = inspect.signature(value).return_annotation
    if annotation not in {None, "None", "NoReturn", inspect.Signature.empty}:
        said = re.match(r"(Return|Yield|Open|Load|Cut|Start)\b", summary)
        assert said or section(text, "Returns") or section(text, "Yields"), "what it returns"
    told = section(text, "Raises") or ""
    for error in raised(value):
        bases = {base.__name__ for base in ERRORS[error].__mro__} & set(ERRORS)
        assert any(re.search(rf"\b{base}\b", told) for base in bases), f"{error} is raised"


def test_there_are_names():
    assert len(PUBLIC) > 200
    assert "wustore.work_unit.WorkUnit.stamps" in PUBLIC
    text = "Do.\n\nParameters\n----------\na, b\n    Numbers.\n**options\n    More.\n\nRaises\n------\nUsageError\n"
    assert listed(text, "Parameters") == ["a", "b", "options"]
    assert section(text, "Raises") == "UsageError\n"
