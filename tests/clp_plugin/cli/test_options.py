"""NAME=VALUE on the command line."""

from __future__ import annotations

import pytest

from clp_plugin.errors import ConfigError
from clp_plugin.files.option_values import parse_options


def test_values_are_read_as_numbers_truth_values_lists_and_text() -> None:
    given = ["epochs=10", "lr=0.01", "amp=true", "milestones=[1, 2]", "name=badnet", "path=a=b", "empty="]
    assert parse_options(given) == {
        "epochs": 10, "lr": 0.01, "amp": True, "milestones": [1, 2], "name": "badnet", "path": "a=b", "empty": "",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["epochs", "=3", " =3"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        parse_options([text])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'epochs' is given twice"):
        parse_options(["epochs=1", "epochs=2"])


def test_a_value_that_is_no_yaml_is_refused_and_nothing_is_run() -> None:
    with pytest.raises(ConfigError, match="cannot read the value"):
        parse_options(["x=[1"])
    with pytest.raises(ConfigError, match="cannot read the value"):
        parse_options(["x=!!python/object/apply:os.getcwd []"])
