"""Nothing that a file holds reaches a terminal as anything but text."""

from __future__ import annotations

import pytest

from clp_plugin.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("größe [bold]", "größe [bold]"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_what_is_not_seen_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["a" * 10**6, "\x00" * 10**6, "a" * 1001])
def test_length_is_bounded_and_both_ends_stay(text: str) -> None:
    shown = printable(text, limit=100)
    assert len(shown) == 100
    assert " ... " in shown
    assert printable("a" * 100, limit=100) == "a" * 100
