"""What is installed can be imported and says what it does: every module, from a checkout and from a wheel."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from clp_plugin import adapters, errors, reports

PLACES = {package: Path(str(package.__file__)).parent for package in (errors, adapters, reports)}
MODULES = sorted(
    {
        ".".join((package.__name__.removesuffix(".errors"), *path.relative_to(place).with_suffix("").parts))
        for package, place in PLACES.items()
        for path in place.rglob("*.py")
        if not path.name.startswith("__")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_and_method_is_documented_or_overrides_one_that_is(name: str) -> None:
    undocumented = [
        where for where, member in public_members(importlib.import_module(name)) if not inspect.getdoc(member)
    ]
    assert not undocumented, "say in a sentence what each of these does that its name does not say"


def public_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions, classes and what public classes define themselves, by name; not what a module imports."""
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member) or inspect.isclass(member):
            yield name, member
        if inspect.isclass(member):
            for attribute in (
                vars(member).keys() - inspect.get_annotations(member).keys()
            ):  # a field's default is no method
                found = getattr(member, attribute)
                if not attribute.startswith("_") and (inspect.isroutine(found) or isinstance(found, property)):
                    yield f"{name}.{attribute}", found
