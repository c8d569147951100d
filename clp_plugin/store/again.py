"""The rule by which a cell that was run before is run again; imports nothing heavy, as the command line states its choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clp_plugin.store.outcomes import Outcome

Again = Literal["only-missing", "failed", "all", "never"]


def is_due(earlier: Outcome | None, again: Again) -> bool:
    """Whether a cell is to be run, given what is stored of it."""
    if again == "never":
        return False
    if earlier is None or again == "all":
        return True
    return again == "failed" and earlier.status == "failed"
