"""Text that came out of somebody's file, made fit to be shown."""

from __future__ import annotations

import unicodedata

# Controls, formats (which can turn the direction of writing), surrogates, private use, and separators of lines and paragraphs.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: object, *, limit: int = 1000) -> str:
    r"""Show text of unknown origin on one line, with nothing in it that a terminal would obey.

    Args:
        text: The text to show; anything that is no string is shown as ``str`` tells it.
        limit: Largest number of characters of the result; what is longer loses its middle.

    Returns:
        The text with every character that is not seen replaced by its escape, such as ``\x1b``.

    Example:
        >>> printable("conv\x1b[2J.weight")
        'conv\\x1b[2J.weight'
    """
    whole = str(text)
    if len(whole) > 4 * limit:  # escapes only make it longer
        whole = _without_middle(whole, 4 * limit)
    shown = "".join(_escaped(character) if _is_invisible(character) else character for character in whole)
    return _without_middle(shown, limit)


def _is_invisible(character: str) -> bool:
    return not (" " <= character <= "~") and unicodedata.category(character) in _INVISIBLE_CATEGORIES


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = limit - len(" ... ")
    return f"{text[: kept - kept // 3]} ... {text[len(text) - kept // 3 :]}"
