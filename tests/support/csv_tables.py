"""Tables that commands wrote, read back to the last bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd

from clp_plugin.files.tables import read_csv_text


def csv_table(source: Path | io.StringIO, **options: Any) -> pd.DataFrame:
    """What ``pandas.read_csv`` gives, but no number is off by a last bit, as those of older pandas may be."""
    text = source.getvalue() if isinstance(source, io.StringIO) else source.read_text(encoding="utf-8")
    return read_csv_text(text, **options)
