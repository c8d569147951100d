"""Tables and figures of the paper: averages recomputed from cells, the best in bold, LaTeX that compiles, bands over seeds."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_ranking import run

from clp_plugin.errors import ConfigError
from clp_plugin.reports.paper import (
    gaps,
    performance_table,
    rates_table,
    sweeps_figure,
    table_latex,
    table_markdown,
    time_table,
)
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome


def of(
    attack: str, record: str, method: str, acc: float, asr: float, *, poison_rate: float = 0.1, **changes: object
) -> Outcome:
    facts = {
        "attack": attack,
        "dataset": "d",
        "architecture": "net_18",
        "sha256": record,
        "path": record,
        "poison_rate": poison_rate,
    }
    return run(method, record, acc=acc, asr=asr, provenance=facts, **changes)


OUTCOMES = [
    of("badnets", "b0", "clp", 0.9, 0.0), of("badnets", "b1", "clp", 0.8, 0.2), of("badnets", "b0", "ft", 0.7, 0.5),
    of("wanet & co", "w0", "clp", 0.85, 0.1), of("wanet & co", "w0", "ft", 0.88, 0.3, seconds=7.0),
]  # fmt: skip


def test_cells_are_means_over_records_and_averages_means_over_rows() -> None:
    table = performance_table(outcomes_frame(OUTCOMES))
    assert table.loc["badnets", ("clp", "ACC")] == pytest.approx(85)
    assert table.loc["badnets", ("clp", "ASR")] == pytest.approx(10)
    assert table.loc["Average", ("ft", "ASR")] == pytest.approx((50 + 30) / 2)
    assert table.loc["Drop", ("ft", "ASR")] == pytest.approx(100 - 40)
    assert table.loc["Drop", ("before", "ACC")] == 0


def test_an_average_over_a_missing_cell_is_not_made_up() -> None:
    table = performance_table(outcomes_frame([*OUTCOMES, of("badnets", "b0", "nad", 0.9, 0.0)]))
    assert math.isnan(table.loc["wanet & co", ("nad", "ACC")])
    assert math.isnan(table.loc["Average", ("nad", "ACC")])


def test_cells_of_some_records_only_are_told() -> None:
    assert gaps(outcomes_frame(OUTCOMES)) == ["ft: 1 of 2 records of badnets"]


def test_rows_may_be_poisoning_rates() -> None:
    assert list(performance_table(outcomes_frame(OUTCOMES), by="poison_rate").index) == [0.1, "Average", "Drop"]


def test_rows_may_be_records_of_one_name_but_for_their_seed() -> None:
    names = ("badnets-seed0", "badnets-seed1", "badnets-all-seed0")
    table = performance_table(outcomes_frame([of("badnets", name, "clp", 0.9, 0.1) for name in names]), by="record")
    assert list(table.index) == ["badnets", "badnets-all", "Average", "Drop"]


def test_rates_are_rows_below_each_other_with_two_columns_an_attack() -> None:
    runs = [
        of(attack, f"{rate}/{attack}-seed0", "clp", 0.9, asr, poison_rate=rate)
        for rate, attack, asr in ((0.1, "badnets", 0.2), (0.01, "badnets", 0.5), (0.1, "sig", 0.4))
    ]
    rows = rates_table(outcomes_frame(runs))
    assert [(row["poison rate"], row["method"]) for row in rows] == [
        (0.01, "before"), (0.01, "clp"), (0.1, "before"), (0.1, "clp"),
    ]  # fmt: skip
    assert [row["badnets ASR"] for row in rows] == pytest.approx([100, 50, 100, 20])
    assert math.isnan(rows[1]["sig ASR"])
    assert rates_table(outcomes_frame(runs[::2])) == []


def test_markdown_marks_the_best_of_a_row() -> None:
    line = next(
        line for line in table_markdown(performance_table(outcomes_frame(OUTCOMES))).splitlines() if "wanet" in line
    )
    assert line == "| wanet & co | 90.0 / 100.0 | 85.0 / **10.0** | **88.0** / 30.0 |"


def test_seconds_are_those_of_the_method() -> None:
    assert time_table(outcomes_frame(OUTCOMES)).loc["net_18"].to_dict() == {"clp": 1.0, "ft": pytest.approx(4.0)}


def test_latex_marks_the_best_and_escapes_names() -> None:
    text = table_latex(performance_table(outcomes_frame(OUTCOMES)), "50 % & more")
    assert r"wanet \& co & 90.00 & 100.00 & 85.00 & \textbf{10.00} & \textbf{88.00} & 30.00" in text
    assert r"\toprule" in text
    assert r"50 \% \& more" in text


@pytest.mark.slow
def test_latex_compiles(tmp_path: Path) -> None:
    found = shutil.which("kpsewhich")
    if (
        found is None
        or subprocess.run([found, "booktabs.sty", "graphicx.sty"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs LaTeX with the packages booktabs and graphicx")
    body = table_latex(performance_table(outcomes_frame(OUTCOMES)), "50 % & more_x")
    source = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(source)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_panel_shows_the_mean_over_its_records_and_their_range() -> None:
    sweeps = {"badnets": [[{"u": u, "acc": 0.5 + s, "asr": s, "ra": None} for u in (3.0, 1.0)] for s in (0.1, 0.3)]}
    (axes,) = sweeps_figure(sweeps).axes
    asr = next(line for line in axes.get_lines() if line.get_label() == "ASR")
    assert list(asr.get_xdata()) == [1.0, 3.0]
    np.testing.assert_allclose(asr.get_ydata(), [20.0, 20.0])
    band = np.asarray(axes.collections[1].get_paths()[0].vertices)[:, 1]
    assert (band.min(), band.max()) == pytest.approx((10.0, 30.0))


def test_without_sweeps_there_is_no_figure() -> None:
    with pytest.raises(ConfigError, match="bench sweep"):
        sweeps_figure({})
