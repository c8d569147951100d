"""Tables for LaTeX with the packages booktabs and graphicx, whatever characters stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip

_NARROW = r"\footnotesize\setlength{\tabcolsep}{3pt}"  # two columns a method
# Shrunk where it is wider than the text, and never blown up.
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex_text(text: str) -> str:
    """The text for LaTeX to print as it stands."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex_rows(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """A table of rows whose keys are its heads; text is set left and all else right, what is missing is a dash."""
    frame = pd.DataFrame(rows)
    words = [bool(frame[name].map(lambda value: isinstance(value, str)).any()) for name in frame]
    style = frame.style.hide(axis="index").format(precision=2, na_rep="--", escape="latex")
    return latex_styled(style, caption, column_format="".join("l" if word else "r" for word in words))


def latex_styled(style: Styler, caption: str, **layout: Any) -> str:
    """A styled table in a float of its own, no wider than the text, between rules, with heads and caption escaped."""
    for axis in (0, 1):
        style = style.format_index(escape="latex", axis=axis)
    told = style.to_latex(
        hrules=True, multicol_align="c", caption=latex_text(caption), position_float="centering", **layout
    )
    for mark, replacement in (
        ("\\centering\n", f"\\centering\n{_NARROW}\n"),
        ("\\begin{tabular}", f"{_FITTED}\n\\begin{{tabular}}"),
        ("\\end{tabular}", "\\end{tabular}}"),
    ):
        told = told.replace(mark, replacement, 1)
    return str(told)
