"""The critical-difference figure: mean ranks of the methods over records, and which of them the ranks cannot separate."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from clp_plugin.errors import ConfigError

from ._style import new_figure
from .ranking import has_backdoor, per_record

_FEWEST_RECORDS, _FEWEST_METHODS = 5, 3


def critical_difference_figure(frame: pd.DataFrame) -> Figure:
    """Mean ranks by DER over the records that every method was run on; a bar joins methods that Nemenyi's test cannot separate.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Raises:
        ConfigError: If scikit-posthocs is not installed, or there are too few methods or records for ranks to say anything.

    Source:
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets (JMLR 2006), section 3.2.2.
    """
    table = _complete(frame)
    tests = _posthocs()
    figure = new_figure(6.4, 1.2 + 0.22 * len(table.columns))
    axes = figure.add_subplot()
    ranks = table.rank(axis=1, ascending=False).mean()
    black = dict.fromkeys(ranks.index, "black")  # the names stand at the lines' ends; colours would add nothing
    tests.critical_difference_diagram(ranks, tests.posthoc_nemenyi_friedman(table), ax=axes, color_palette=black)
    axes.set_title(
        f"mean rank by DER over {len(table)} records; a bar joins what these cannot separate (p > 0.05)", fontsize=8
    )
    return figure


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """DER, records down and methods across, of the records on which the attack took and every method was run."""
    runs = per_record(frame)
    runs = runs[has_backdoor(runs)] if len(runs) else runs
    table = runs.pivot_table(index=["sha256", "record"], columns="label", values="der", sort=False)
    table = table.dropna().reset_index(drop=True)
    if len(table) < _FEWEST_RECORDS or len(table.columns) < _FEWEST_METHODS:
        raise ConfigError(
            f"--critical-difference: ranks need at least {_FEWEST_METHODS} methods, each run on the same {_FEWEST_RECORDS} "
            f"records or more on which the attack took; found {len(table.columns)} methods and {len(table)} such records. "
            "Keep to the methods that were run on all, with --where method=NAME for each, or run more"
        )
    return table


def _posthocs() -> Any:
    try:
        import scikit_posthocs
    except ImportError as error:
        raise ConfigError(
            "--critical-difference needs the package scikit-posthocs: pip install 'clp-plugin[posthocs]'"
        ) from error
    return scikit_posthocs
