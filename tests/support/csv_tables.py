"""Tables that commands wrote, read back to the last bit."""

from __future__ import annotations

from typing import Any

import pandas as pd


def csv_table(source: Any, **options: Any) -> pd.DataFrame:
    """What ``pandas.read_csv`` gives, but no number is off by a last bit, as those of its fast parser may be."""
    return pd.read_csv(source, float_precision="round_trip", **options)
