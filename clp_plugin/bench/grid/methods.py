"""The methods of a grid, as people write them: ``clp``, ``clp:u=2`` and ``backdoorbench:anp:epochs=5``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.option_values import parse_options
from clp_plugin.registry import Catalogue

OWN = "clp_plugin"


@dataclass(frozen=True)
class Method:
    """A method of a grid.

    Attributes:
        name: Name of the defense in the catalogue, or in its toolbox.
        implementation: Owner of the code that runs: ``"clp_plugin"``, or the name of a toolbox.
        options: Options that were asked for.
    """

    name: str
    implementation: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether code of this package, or of an extension of it, runs."""
        return self.implementation == OWN

    def runs_on(self, toolbox: str) -> bool:
        """Whether it can run on records of that toolbox: a toolbox's own code runs on its own records only."""
        return self.is_own or self.implementation == toolbox

    def __str__(self) -> str:
        parts = [*([] if self.is_own else [self.implementation]), self.name]
        return ":".join([*parts, *(f"{name}={value}" for name, value in self.options.items())])


def parse_method(text: str, catalogue: Catalogue) -> Method:
    """``[TOOLBOX:]NAME[:OPTION=VALUE]...``; values are read as YAML.

    Args:
        text: The method as it was typed.
        catalogue: The catalogue of what is on offer.

    Raises:
        ConfigError: If it is of another form.
        RegistryError: If one of our own methods is unknown; a toolbox's own are known by the toolbox alone.

    Example:
        >>> from clp_plugin.registry import load_catalogue
        >>> parse_method("clp:u=2", load_catalogue()).options
        {'u': 2}
    """
    names = text.split(":")
    options = [part for part in names if "=" in part]
    words = names[: len(names) - len(options)]
    if not all(words) or not 1 <= len(words) <= 2 or any("=" in word for word in words):
        raise ConfigError(
            f"--method: expected [TOOLBOX:]NAME[:OPTION=VALUE]... such as clp, clp:u=2 or backdoorbench:anp, found {text!r}"
        )
    *toolbox, name = words
    parsed = parse_options(options, flag=f"--method {text}")
    if toolbox:
        catalogue.entry("toolboxes", toolbox[0])
        return Method(name, toolbox[0], parsed)
    catalogue.entry("defenses", name)
    return Method(name, options=parsed)
