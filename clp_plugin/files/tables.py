"""Tables of numbers in CSV files, read to the last bit."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def read_csv_text(text: str, **options: Any) -> pd.DataFrame:
    """The table that a text in CSV holds.

    Args:
        text: The whole content of a file.
        **options: Further arguments of :func:`pandas.read_csv`.

    Raises:
        ValueError: If it is no table.
    """
    import pandas as pd

    # From pandas 3 on the usual parser is exact, and the word for it is deprecated; before, it was off by a last bit.
    exact: dict[str, Any] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    found: pd.DataFrame = pd.read_csv(io.StringIO(text), **exact, **options)
    return found
