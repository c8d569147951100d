"""Tables in CSV files, to the last bit, with any pandas and without a warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from clp_plugin.files.tables import read_csv_text


def test_numbers_are_read_to_the_last_bit_and_nothing_warns() -> None:
    values = np.random.default_rng(0).random(2000)
    text = "value\n" + "\n".join(map(repr, map(float, values)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_csv_text(text)["value"].to_numpy()
    assert (read == values).all()


def test_what_is_no_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="No columns"):
        read_csv_text("")
