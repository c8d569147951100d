"""Errors a user can act on: what was expected, what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class ClpError(Exception):
    """Base of every error that this package raises on purpose; the CLI prints it in one line and exits with 2.

    Example:
        >>> from clp_plugin import ClpError, open_record
        >>> try:
        ...     open_record("no/such/record")
        ... except ClpError as error:
        ...     print(type(error).__name__)
        RecordError
    """


class ConfigError(ClpError):
    """An option or a configuration value cannot be used."""


class RegistryError(ClpError):
    """registry.yaml, an entry point or a ``--registry`` file is wrong, or a name is not in the catalogue."""


class CheckpointError(ClpError):
    """A checkpoint cannot be read safely or does not fit its architecture."""


class RecordError(ClpError):
    """A record is missing, incomplete or inconsistent."""


class ToolboxError(ClpError):
    """A toolbox's own script failed, took too long, or left nothing that can be used."""


class PairingError(ClpError):
    """The linear layers of a model cannot be found."""


class ScoreError(ClpError):
    """A layer cannot be scored: its weights hold NaN or Inf, or a variance is negative."""


class MaskError(ClpError):
    """A mask does not fit the model it is applied to."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One message for every unknown key or name: it always ends with what exists."""
    return f"unknown {kind} {name!r}; known: {', '.join(sorted(known)) or 'none'}"
