"""What is installed can be imported: every module, from a checkout and from a wheel."""

from __future__ import annotations

import importlib
from pathlib import Path

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
