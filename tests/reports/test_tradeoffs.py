"""Figures that compare methods show each record where it lies, and no record without a backdoor."""

from __future__ import annotations

import importlib.util
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_ranking import run

from clp_plugin.errors import ConfigError
from clp_plugin.reports._style import look
from clp_plugin.reports.critical import critical_difference_figure
from clp_plugin.reports.figures import save_figure
from clp_plugin.reports.paper import channels_figure
from clp_plugin.reports.tradeoffs import cost_figure, effectiveness_figure, tradeoff_figure
from clp_plugin.store.frame import outcomes_frame

RUNS = [
    run("clp", "one", acc=0.85, asr=0.0, seconds=0.1), run("clp", "two", acc=0.9, asr=0.4, seconds=0.3),
    run("anp", "one", acc=0.5, asr=0.1, seconds=40.0), run("anp", "clean", acc=0.1, asr=0.0, before=(0.9, 0.0)),
]  # fmt: skip


def test_a_record_lies_at_its_loss_of_accuracy_and_the_asr_that_is_left() -> None:
    (axes,) = tradeoff_figure(outcomes_frame(RUNS)).axes
    dots = {drawn.get_label(): np.asarray(drawn.get_offsets()).tolist() for drawn in axes.collections}
    assert dots["clp"] == [pytest.approx([5, 0]), pytest.approx([0, 40])]
    assert dots["anp"] == [pytest.approx([40, 10])]
    (corner,) = axes.patches
    assert (corner.get_x() + corner.get_width(), corner.get_height()) == pytest.approx((5, 10))


def test_methods_stand_in_the_order_of_their_der() -> None:
    (axes,) = effectiveness_figure(outcomes_frame(RUNS)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clp (2)", "anp (1)"]


def test_seconds_are_logarithmic() -> None:
    (axes,) = cost_figure(outcomes_frame(RUNS)).axes
    assert axes.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1][:1] == pytest.approx([0.2])


@pytest.mark.parametrize("draw", [tradeoff_figure, effectiveness_figure, cost_figure])
def test_without_a_backdoor_there_is_nothing_to_compare(draw: object) -> None:
    with pytest.raises(ConfigError, match="an attack took"):
        draw(outcomes_frame(RUNS[3:]))  # type: ignore[operator]


def test_looks_differ_in_grey_too() -> None:
    looks = [look(position) for position in range(88)]
    assert len(set(looks)) == 88
    assert len({marker for _, marker in looks[:11]}) == 11


def test_fonts_are_embedded_as_outlines(tmp_path: Path) -> None:
    _, pdf = save_figure(tradeoff_figure(outcomes_frame(RUNS)), tmp_path / "figure")
    content = pdf.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_figure_3_is_drawn_from_the_stored_table() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.random(12)
    table = pd.DataFrame(
        {"layer": "a", "channel": range(12), "sigma": sigma, "tac": np.exp(9 * sigma), "pruned": sigma > 0.8}
    )
    flat = pd.DataFrame({"layer": "b", "channel": [1, 0], "sigma": 1.0, "tac": [0.0, 1.0], "pruned": False})
    first, second = channels_figure(pd.concat([table, flat])).axes
    assert first.get_title() == f"a\nr = {np.corrcoef(sigma, np.exp(9 * sigma))[0, 1]:.2f}, ρ = 1.00"
    assert second.get_title() == "b\nr = n/a, ρ = n/a"


MANY = [
    run(name, str(i), acc=0.9, asr=asr)
    for i, (name, asr) in product(range(6), zip("abc", (0.0, 0.4, 0.9), strict=True))
]


def test_too_few_records_for_ranks_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"found 3 methods and 4 such records"):
        critical_difference_figure(outcomes_frame(MANY[:12]))
    with pytest.raises(ConfigError, match=r"found 2 methods"):
        critical_difference_figure(outcomes_frame([each for each in MANY if each.method != "c"]))


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scikit_posthocs", None)
    with pytest.raises(ConfigError, match=r"pip install 'clp-plugin\[posthocs\]'"):
        critical_difference_figure(outcomes_frame(MANY))


@pytest.mark.skipif(importlib.util.find_spec("scikit_posthocs") is None, reason="needs scikit-posthocs")
def test_mean_ranks_of_all_methods_are_drawn() -> None:
    (axes,) = critical_difference_figure(outcomes_frame(MANY)).axes
    told = {word for text in axes.texts for word in text.get_text().split()}
    assert told >= {"a", "(1)", "b", "(2)", "c", "(3)"}
