"""Measurements of a record beside its repairs: the tables that ``bench correlate`` and ``bench sweep`` left there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clp_plugin.errors import ConfigError
from clp_plugin.files.reading import read_text
from clp_plugin.files.tables import read_csv_text
from clp_plugin.store.layout import ANALYSIS

if TYPE_CHECKING:
    import pandas as pd


def channel_table(record: Path) -> pd.DataFrame | None:
    """The table of the latest ``bench correlate`` on a record, with the columns ``layer, channel, sigma, tac, pruned``.

    Raises:
        ConfigError: If it is there and is not a table.
    """
    return _latest(record, "correlate-*/tac.csv")


def sweep_table(record: Path) -> pd.DataFrame | None:
    """The table of the latest ``bench sweep`` on a record, with the columns ``u, pruned, acc, asr, ra`` and more.

    Raises:
        ConfigError: If it is there and is not a table.
    """
    return _latest(record, "sweep-*/sweep.csv")


def _latest(record: Path, pattern: str) -> pd.DataFrame | None:
    files = sorted((record / ANALYSIS).glob(pattern), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    try:
        return read_csv_text(read_text(files[-1], raises=ConfigError))
    except ValueError as error:
        raise ConfigError(f"{files[-1]} is not a table: {error}; make it again") from error
