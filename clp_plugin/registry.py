"""The catalogue of what is on offer: registry.yaml, installed third parties, and the user's own file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clp_plugin.errors import RegistryError, unknown_name
from clp_plugin.files.reading import read_yaml
from clp_plugin.imports import import_object

Kind = Literal["toolboxes", "defenses", "attacks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SINGULAR: dict[str, str] = {"toolboxes": "toolbox", "defenses": "defense", "attacks": "attack"}


class Entry(BaseModel):
    """One thing on offer and the facts about it.

    Attributes:
        object: ``"package.module:attribute"`` or ``"file.py:attribute"``, imported when it is used.
        summary: One line for people.
        citation: The paper that it comes from, or empty.
        budget: The data that a defense may see: ``"none"`` (data-free), ``"benign"`` (n benign images) or
            ``"poisoned"`` (n images of the poisoned training set).
        defaults: Option to value.
        dataset_defaults: Dataset to option to value; goes before ``defaults``.
        scales: Scale (``"small"``) to option to value; goes before both.
        opt_in: Whether a grid runs a defense only where it is named.
        presence: For a toolbox, what tells where it is and what of it runs, as ``object`` is given: a function without
            arguments that returns a :class:`~clp_plugin.records.exchange.ToolboxPresence`, or raises a ConfigError.
        replaces: The entry's own name, if it takes the place of an earlier provider on purpose.
        origin: Who offers it: ``clp_plugin``, an installed distribution with its version, or a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    object: str = Field(pattern=r"^[^:].*:[A-Za-z_][\w.]*$")
    summary: str
    citation: str = ""
    budget: Literal["none", "benign", "poisoned"] = "none"
    defaults: dict[str, Any] = {}
    dataset_defaults: dict[str, dict[str, Any]] = {}
    scales: dict[str, dict[str, Any]] = {}
    opt_in: bool = False
    presence: str = Field(default="", exclude=True, pattern=r"^([^:].*:[A-Za-z_][\w.]*)?$")
    replaces: str | None = None
    origin: str = Field(default="", exclude=True)


@dataclass(frozen=True)
class Catalogue:
    """All entries by section and name.

    Attributes:
        sections: Section to name to entry, each in the order of appearance.
    """

    sections: Mapping[Kind, Mapping[str, Entry]]

    def names(self, kind: Kind) -> list[str]:
        """The names in one section.

        Raises:
            RegistryError: If there is no such section.
        """
        if kind not in self.sections:
            raise RegistryError(unknown_name("section", kind, self.sections))
        return list(self.sections[kind])

    def usual_defenses(self) -> list[str]:
        """The defenses that a grid runs where none is named: all but those that are opt-in."""
        return [name for name in self.names("defenses") if not self.entry("defenses", name).opt_in]

    def entry(self, kind: Kind, name: str) -> Entry:
        """The facts about one name.

        Raises:
            RegistryError: If the name is unknown; lists what exists.
        """
        if name not in self.names(kind):
            raise RegistryError(unknown_name(_SINGULAR[kind], name, self.names(kind)))
        return self.sections[kind][name]

    def resolve(self, kind: Kind, name: str) -> object:
        """Import what a name stands for.

        Raises:
            RegistryError: If the name is unknown or its object cannot be imported; says who offers it.
        """
        entry = self.entry(kind, name)
        try:
            return import_object(entry.object)
        except Exception as error:  # an extension may fail in any way; it must not take the command down
            raise RegistryError(
                f"{_SINGULAR[kind]} {name!r} ({entry.object}, from {entry.origin}) cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def defaults(
        self, kind: Kind, name: str, *, dataset: str | None = None, scale: str | None = None
    ) -> dict[str, Any]:
        """Options of an entry; those of ``scale`` win over those for ``dataset``, and these over the rest.

        Case, spaces, ``-`` and ``_`` in the data set's name do not matter. A scale that an entry does not name changes
        nothing: CLP costs the same at any.
        """
        entry = self.entry(kind, name)
        special = {_plain(key): options for key, options in entry.dataset_defaults.items()}
        return {**entry.defaults, **special.get(_plain(dataset or ""), {}), **entry.scales.get(scale or "", {})}


def load_catalogue(extra: Path | None = None) -> Catalogue:
    """Built-in entries, then those of installed distributions, then the user's file.

    Args:
        extra: A file of the form of registry.yaml.

    Raises:
        RegistryError: If a file has an error, or two providers claim one name and the later does not say ``replaces``.
    """
    sections: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}
    for kind, name, entry in _read_file(packaged_registry(), origin="clp_plugin"):
        _add(sections, kind, name, entry)
    for kind, name, entry in _installed():
        _add(sections, kind, name, entry)
    for kind, name, entry in _read_file(extra, origin=str(extra)) if extra is not None else ():
        _add(sections, kind, name, entry)
    return Catalogue(sections)


def packaged_registry() -> Path:
    """Path of registry.yaml: beside the package in a checkout, in ``_root`` once installed."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "registry.yaml"
    # Installed, the folder above is site-packages, where somebody else's registry.yaml could lie.
    return beside if (package.parent / "pyproject.toml").is_file() else package / "_root" / "registry.yaml"


def _add(sections: dict[Kind, dict[str, Entry]], kind: Kind, name: str, entry: Entry) -> None:
    if entry.replaces not in (None, name):
        raise RegistryError(
            f"{kind}.{name} in {entry.origin}: replaces: {entry.replaces!r} must be the entry's own name, {name!r}"
        )
    earlier = sections[kind].get(name)
    if earlier is not None and entry.replaces is None:
        raise RegistryError(
            f"two providers of the {_SINGULAR[kind]} {name!r}: {earlier.object} from {earlier.origin} and "
            f"{entry.object} from {entry.origin}; rename one, or add `replaces: {name}` to the second"
        )
    sections[kind][name] = entry


def _installed() -> Iterable[tuple[Kind, str, Entry]]:
    """Entries of third parties; their objects are imported for the facts, and may fail without harm until used."""
    for kind in KINDS:
        for point in sorted(importlib.metadata.entry_points(group=f"clp_plugin.{kind}"), key=lambda p: p.name):
            by = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed distribution"
            facts: dict[str, Any] = {"object": point.value, "origin": by}
            try:
                facts |= _own_facts(import_object(point.value))
            except Exception as error:  # a broken extension must not hide the others
                facts["summary"] = f"cannot be imported: {type(error).__name__}: {error}"
            yield kind, point.name, _validated(facts, f"{kind}.{point.name} of {by}")


def _own_facts(thing: object) -> dict[str, Any]:
    fields = ("summary", "citation", "budget", "defaults", "dataset_defaults", "scales", "opt_in", "replaces")
    facts = {field: getattr(thing, field) for field in fields if hasattr(thing, field)}
    first_line = (thing.__doc__ or "").strip().partition("\n")[0]
    return {"summary": first_line or "no summary", **facts}


def _read_file(path: Path, *, origin: str) -> Iterable[tuple[Kind, str, Entry]]:
    content = read_yaml(path, raises=RegistryError, unique_keys=True)
    for section, entries in _mapping(content, str(path)).items():
        if section not in KINDS:
            raise RegistryError(f"{path}: " + unknown_name("section", str(section), KINDS))
        for name, facts in _mapping(entries, f"{section} in {path}").items():
            where = f"{section}.{name} in {path}"
            entry = _validated({**_mapping(facts, where), "origin": origin}, where)
            beside = {
                field: str(path.resolve().parent / reference)
                for field, reference in (("object", entry.object), ("presence", entry.presence))
                if reference.rpartition(":")[0].endswith(".py")  # relative to the file that names it
            }
            entry = entry.model_copy(update=beside)
            yield section, str(name), entry


def _mapping(value: object, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RegistryError(f"{where}: expected names with their values, found {value!r}")
    return value


def _validated(facts: dict[str, Any], where: str) -> Entry:
    try:
        return Entry.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = [field for field in Entry.model_fields if field != "origin"]
            raise RegistryError(f"{where}: {unknown_name('key', key, known)}") from error
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"
        raise RegistryError(f"{where}: {key}: {first['msg']}{found}") from error


def _plain(dataset: str) -> str:
    return dataset.casefold().translate({ord(sign): None for sign in "-_ "})
