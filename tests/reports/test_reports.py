"""Figures show what they were given, files are whole and repeatable, tables say percent."""

from __future__ import annotations

import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clp_plugin.errors import ConfigError
from clp_plugin.reports.figures import (
    channel_scores_figure,
    example_images_figure,
    save_figure,
    sweep_figure,
    uclc_tac_figure,
)
from clp_plugin.reports.tables import outcome_rows, to_csv, to_markdown
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome
from clp_plugin.types import Mask, Scores

ROWS = [
    {"u": 5.0, "pruned": 1, "acc": 0.93, "asr": 1.0, "ra": 0.0},
    {"u": 0.0, "pruned": 90, "acc": 0.1, "asr": 0.0, "ra": None},
    {"u": 3.0, "pruned": 4, "acc": 0.9, "asr": 0.05, "ra": 0.8},
]


def layers(count: int, channels: int = 16) -> tuple[Scores, dict[str, Any], Mask]:
    """Layers whose channel 0, and only that one, stands out."""
    rng = np.random.default_rng(0)
    sigma = {f"block{i}.conv": rng.uniform(1, 1.1, channels) for i in range(count)}
    for values in sigma.values():
        values[0] = 3
    mask = Mask({name: values > 2 for name, values in sigma.items()})
    return Scores(sigma, dict.fromkeys(sigma, 0.0)), {name: 2 * values for name, values in sigma.items()}, mask


def dots(axes: Axes) -> list[tuple[float, float]]:
    return [tuple(point) for drawn in axes.collections for point in np.asarray(drawn.get_offsets()).tolist()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def outcome(method: str = "clp", **changes: Any) -> Outcome:
    before = {"acc": 0.99, "asr": 1.0, "ra": 0.0, "base_rate": 0.011, "n_clean": 100, "n_triggered": 90}
    facts: dict[str, Any] = {
        "method": method, "command": "bench defend", "seed": 0, "device": "cpu", "seconds": 0.1234,
        "provenance": {"attack": "badnets", "dataset": "digits", "architecture": "resnet18"},
        "before": before, "after": {**before, "acc": 0.97, "asr": 0.0512, "ra": 0.9}, "der": 0.9644,
        "mask": {"conv": {"channels": 4, "pruned": [1, 2]}},
    }  # fmt: skip
    return Outcome(**{**facts, **changes})


def test_scan_figure_has_a_dot_a_channel_at_its_distance_from_the_mean() -> None:
    scores, _, mask = layers(3)
    figure = channel_scores_figure(scores, mask, 3.0)
    drawn = dots(figure.axes[0])
    assert len(drawn) == 3 * 16
    for row, values in enumerate(scores.sigma.values()):
        z = (values - values.mean()) / values.std()
        assert sorted(x for x, y in drawn if abs(y - row) < 0.5) == pytest.approx(sorted(z))
    assert [line.get_xdata() for line in figure.axes[0].lines] == [[3.0, 3.0]]
    assert texts(figure).count("0") >= 3, "the index of the outlying channel stands beside each layer"


def test_scan_figure_lists_a_few_indices_and_counts_the_rest() -> None:
    scores = Scores({"conv": np.arange(40.0)}, {"conv": 0.0})
    figure = channel_scores_figure(scores, Mask({"conv": np.arange(40) >= 30}), 1.0)
    assert "30, 31, 32, 33, 34, 35 +4" in texts(figure)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_scan_figure_takes_any_number_of_layers(count: int, tmp_path: Path) -> None:
    scores, _, mask = layers(count)
    figure = channel_scores_figure(scores, mask, 3.0)
    save_figure(figure, tmp_path / "scan")
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes)), "names do not overlap"


def test_scan_figure_of_equal_scores_lies_at_the_mean() -> None:
    scores = Scores({"conv": np.ones(4), "one": np.ones(1)}, {"conv": 0.0, "one": 0.0})
    assert {x for x, _ in dots(channel_scores_figure(scores, Mask({}), 3.0).axes[0])} == {0.0}


def test_mask_of_another_model_is_refused() -> None:
    scores, _, _ = layers(1)
    with pytest.raises(ConfigError, match=r"layer 'block0\.conv': 16 scores but a mask of 3 channels"):
        channel_scores_figure(scores, Mask({"block0.conv": np.ones(3, bool)}), 3.0)


def test_correlation_figure_has_a_panel_a_layer_with_both_numbers() -> None:
    scores, tac, mask = layers(5)
    numbers = {"block0.conv": (0.834, -0.5), "block1.conv": (float("nan"), 1.0)}
    figure = uclc_tac_figure(scores, tac, mask, numbers)
    assert len(figure.axes) == 5
    assert figure.axes[0].get_title() == "block0.conv\nr = 0.83, ρ = -0.50"
    assert figure.axes[1].get_title() == "block1.conv\nr = n/a, ρ = 1.00"
    plain, marked = figure.axes[0].collections
    assert np.asarray(marked.get_offsets()).tolist() == [[3.0, 6.0]]
    assert len(np.asarray(plain.get_offsets())) == 15
    assert marked.get_facecolor().tolist() != plain.get_facecolor().tolist()


def test_correlation_figure_leaves_out_layers_without_tac_and_refuses_other_widths() -> None:
    scores, tac, mask = layers(3)
    del tac["block1.conv"]
    assert len(uclc_tac_figure(scores, tac, mask, {}).axes) == 2
    tac["block1.conv"] = np.ones(3)
    with pytest.raises(ConfigError, match=r"'block1\.conv': 16 scores but 3 values of TAC"):
        uclc_tac_figure(scores, tac, mask, {})


def test_sweep_figure_draws_percent_in_the_order_of_u() -> None:
    figure = sweep_figure(ROWS, default_u=3.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["ASR"].get_xdata()) == [0.0, 3.0, 5.0]
    assert list(lines["ASR"].get_ydata()) == pytest.approx([0.0, 5.0, 100.0])
    assert np.isnan(lines["RA"].get_ydata()[0])
    assert list(lines["RA"].get_ydata())[1:] == pytest.approx([80.0, 0.0])
    assert list(figure.axes[1].lines[0].get_ydata()) == [90, 4, 1]
    assert "default u = 3" in texts(figure)
    assert "default u = 3" not in texts(sweep_figure(ROWS, default_u=None))
    with pytest.raises(ConfigError, match=r"at least one row"):
        sweep_figure([])


def test_example_figure_shows_the_change_at_full_range() -> None:
    clean = np.full((2, 3, 4, 4), 100, np.uint8)
    triggered = clean.copy()
    triggered[:, :, 3, 3] = 49  # darker: the difference must not wrap around
    figure = example_images_figure(clean, triggered, captions=["1 → 0"])
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 6
    assert (shown[2] == triggered[0].transpose(1, 2, 0)).all()
    assert shown[4][3, 3].tolist() == [255, 255, 255]
    assert shown[4].sum() == 3 * 255
    assert "change × 5" in texts(figure)
    assert figure.axes[0].get_title() == "1 → 0"


def test_example_figure_takes_grey_images_and_refuses_unequal_ones() -> None:
    grey = np.zeros((1, 1, 4, 4), np.uint8)
    assert np.asarray(example_images_figure(grey, grey).axes[0].images[0].get_array()).shape == (4, 4)
    for other in (grey[:, :, :2], grey[:0], grey[0]):
        with pytest.raises(ConfigError, match=r"expected two equal shapes"):
            example_images_figure(other, grey if len(other) else other)


def test_saved_figure_is_png_and_pdf_and_the_same_twice(tmp_path: Path) -> None:
    first = save_figure(sweep_figure(ROWS), tmp_path / "new" / "sweep_u3.0")
    assert [path.name for path in first] == ["sweep_u3.0.png", "sweep_u3.0.pdf"]
    with Image.open(first[0]) as image:
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 10, "not a blank page"
    assert first[1].read_bytes().startswith(b"%PDF")
    second = save_figure(sweep_figure(ROWS), tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_markdown_says_percent_and_keeps_the_columns_apart() -> None:
    lines = to_markdown(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["u", "pruned", "acc %", "asr %", "ra %"]
    assert cells[2] == ["5", "1", "93.0", "100.0", "0.0"]
    assert cells[3] == ["0", "90", "10.0", "0.0", "-"]
    assert len({len(line) for line in lines}) == 1
    assert to_markdown([]) == "(no rows)\n"
    assert "a\\|b c" in to_markdown([{"error": "a|b\nc"}])


def test_outcome_rows_keep_fractions_and_mark_oracles() -> None:
    failure = outcome(status="failed", error="boom", after=None, der=None)
    row, oracle, failed = outcome_rows(outcomes_frame([outcome(), outcome("anp", protocol="oracle"), failure]))
    assert (row["after_asr"], row["base_rate"], row["pruned"], row["method"]) == (0.0512, 0.011, 2, "clp")
    assert oracle["method"] == "anp (oracle)"
    assert (failed["after_asr"], failed["der"], failed["status"]) == (None, None, "failed")
    assert to_markdown([{"after_asr": row["after_asr"]}]).split()[-2] == "5.1"


def test_large_counts_are_written_out_beside_missing_ones() -> None:
    wide = {"conv": {"channels": 4096, "pruned": list(range(1234))}}
    frame = outcomes_frame([outcome(mask=wide, seconds=5678.9), outcome(mask=None, seed=None)])
    table = to_markdown(outcome_rows(frame))
    assert "| 1234 |" in " ".join(table.split())
    assert "| 5679 |" in " ".join(table.split())


def test_csv_has_every_digit_and_no_percent(tmp_path: Path) -> None:
    to_csv([{"u": 3.0, "acc": 1 / 3, "note": "a,b"}, {"u": 4.0, "acc": None, "note": ""}], tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["acc"]) == 1 / 3
    assert rows[0]["note"] == "a,b"
    assert rows[1]["acc"] == ""


def test_reports_need_no_torch_and_keep_no_pyplot_state() -> None:
    code = (
        "import sys, clp_plugin.reports.figures, clp_plugin.reports.tables\n"
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_with_dollar_signs_is_drawn_as_it_is(tmp_path: Path) -> None:
    figure = sweep_figure(ROWS, title=r"runs/$\\frac{a$")
    assert len(save_figure(figure, tmp_path / "sweep")) == 2
