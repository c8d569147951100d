"""The leaderboard as people and programs read it: labels that tell runs apart, percent, groups, LaTeX that compiles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_ranking import run

from clp_plugin.reports.board import (
    UNEQUAL,
    board_groups,
    board_latex,
    board_markdown,
    board_rows,
    reported_rows,
    said_of_the_best,
)
from clp_plugin.reports.labels import method_labels
from clp_plugin.reports.latex import latex_rows
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome


def labels(*outcomes: Outcome) -> list[str]:
    return method_labels(outcomes_frame(outcomes))


def test_options_that_differ_on_one_record_tell_the_rows_of_a_method_apart() -> None:
    runs = [run("clp", "a", acc=0.9, asr=0.1, options={"u": u, "norm": "reshaped", "eps": 0.1}) for u in (2.0, 3.0)]
    assert labels(*runs, run("ft", "a", acc=0.9, asr=0.1, options={"lr": 0.1})) == ["clp, u=2", "clp, u=3", "ft"]


def test_options_that_follow_from_the_data_set_do_not() -> None:
    assert labels(*(run("clp", name, acc=0.9, asr=0.1, options={"u": u}) for name, u in (("a", 3.0), ("b", 5.0)))) == [
        "clp", "clp",
    ]  # fmt: skip


def test_as_few_options_are_named_as_tell_the_rows_apart() -> None:
    small, full = {"epochs": 5, "lr": 0.1, "steps": 40}, {"epochs": 100, "lr": 0.01, "steps": 2000}
    assert labels(*(run("anp", "a", acc=0.9, asr=0.1, options=options) for options in (small, full))) == [
        "anp, epochs=5", "anp, epochs=100",
    ]  # fmt: skip


def test_a_budget_is_named_like_an_option_and_so_is_an_oracle() -> None:
    budgets = [run("ft", "a", acc=0.9, asr=0.1, budget=f"benign:{n}", protocol="oracle") for n in (50, 500)]
    assert labels(*budgets) == ["ft, budget=benign:50 (oracle)", "ft, budget=benign:500 (oracle)"]


def test_options_are_rows_of_their_own_and_seeds_are_averaged() -> None:
    runs = [
        run("clp", "one", acc=0.9, asr=asr, seed=seed, options={"u": u})
        for u, seed, asr in ((2.0, 0, 0.0), (2.0, 1, 0.2), (3.0, 0, 0.6))
    ]
    rows = {row["method"]: row for row in board_rows(outcomes_frame(runs))}
    assert {name: (row["ASR %"], row["spread"]) for name, row in rows.items()} == {
        "clp, u=2": ("10.0", "20.0"), "clp, u=3": ("60.0", "0.0"),
    }  # fmt: skip


def test_people_read_percent_counts_and_what_a_method_leaves_alone() -> None:
    unpruned, pruned = {"conv": {"channels": 4, "pruned": []}}, {"conv": {"channels": 4, "pruned": [1]}}
    clean = [
        run("clp", name, acc=acc, asr=0.05, before=(0.9, 0.05), mask=mask)
        for name, acc, mask in (("clean", 0.9, unpruned), ("other", 0.8, pruned))
    ]
    (row,) = board_rows(outcomes_frame([run("clp", "one", acc=0.88, asr=0.0), *clean]))
    assert (row["ACC %"], row["base rate %"], row["removed"]) == ("88.0", "2.0", "1 of 1")
    assert (row["idle untouched"], row["idle ACC drop"]) == ("1 of 2", "5.0")


def test_groups_keep_the_order_of_appearance_and_drop_what_has_no_metrics() -> None:
    facts = {"path": "r", "sha256": "r"}
    frame = outcomes_frame(
        [
            run("clp", "r", acc=0.9, asr=0.1, provenance={**facts, "attack": "wanet"}),
            run("clp", "r", acc=0.9, asr=0.1, provenance=facts),
            run("clp", "r", acc=0.9, asr=0.1, provenance={**facts, "attack": "sig"}, after=None, der=None),
        ]
    )
    assert list(board_groups(frame, "attack")) == ["wanet", "unknown"]
    assert "## attack: wanet\n" in board_markdown(frame, by="attack")


def test_the_best_method_is_compared_with_each_other_one() -> None:
    runs = [
        run(name, str(i), acc=0.9, asr=asr)
        for i in range(7)
        for name, asr in (("bad", 0.9), ("good", 0.0), ("mid", 0.4))
    ]
    told = said_of_the_best(outcomes_frame(runs))
    assert [line.split(":")[0] for line in told] == ["good is better than mid", "good is better than bad"]


def test_five_records_cannot_tell_however_clear_they_look() -> None:
    runs = [run(name, str(i), acc=0.9, asr=asr) for i in range(5) for name, asr in (("bad", 0.9), ("good", 0.0))]
    assert "cannot tell" in said_of_the_best(outcomes_frame(runs))[0]


def test_a_method_on_a_record_of_its_own_is_not_the_one_to_compare_with() -> None:
    runs = [run(name, str(i), acc=0.9, asr=asr) for i in range(7) for name, asr in (("bad", 0.9), ("good", 0.2))]
    told = said_of_the_best(outcomes_frame([*runs, run("alone", "0", acc=0.9, asr=0.0)]))
    assert [line.split(":")[0] for line in told] == ["good is better than bad"]
    (row,) = board_rows(outcomes_frame([run("alone", "0", acc=0.9, asr=0.0)]))
    assert row["95 %"] == "-"


def test_what_a_script_measured_stands_beside_what_was_measured_here() -> None:
    theirs = run("anp", "one", acc=0.8, asr=0.1, implementation="backdoorbench", reported={"acc": 0.83, "asr": 0.1})
    (row,) = reported_rows(outcomes_frame([run("clp", "one", acc=0.9, asr=0.0), theirs]))
    assert (row["label"], row["after_acc"], row["reported_acc"], row["reported_ra"]) == (
        "anp (backdoorbench)", 0.8, 0.83, None,
    )  # fmt: skip
    assert row["apart"] == 3


def test_means_over_different_records_are_told() -> None:
    everywhere = [run(name, record, acc=0.9, asr=0.1) for record in "ab" for name in ("clp", "ft")]
    assert UNEQUAL not in board_markdown(outcomes_frame(everywhere), by=None)
    assert UNEQUAL in board_markdown(outcomes_frame(everywhere[:-1]), by=None)
    swapped = [run(name, record, acc=0.9, asr=0.1) for name, record in (("clp", "a"), ("ft", "b"))]
    assert UNEQUAL in board_markdown(outcomes_frame(swapped), by=None)


@pytest.mark.slow
def test_any_text_compiles_in_latex(tmp_path: Path) -> None:
    found = shutil.which("kpsewhich")
    if (
        found is None
        or subprocess.run([found, "booktabs.sty", "graphicx.sty"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs LaTeX with the packages booktabs and graphicx")
    hostile = r"\a{b}_c & 50 % ~^ #1 $x$"
    runs = [run("clp", name, acc=0.9, asr=0.1, options={"u": u}) for name in ("a", "b") for u in (2.0, 3.0)]
    wide = [{f"a long head {number}": "a long cell" for number in range(12)}]
    body = (
        latex_rows([{hostile: hostile, "n": 1.5}], hostile)
        + latex_rows(wide, "no wider than the text")
        + board_latex(outcomes_frame(runs), by="record")
    )
    source = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(source, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
