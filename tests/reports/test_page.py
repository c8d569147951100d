"""The page holds all that it shows, asks for nothing, and answers to keyboard, filter and link in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from clp_plugin.errors import ConfigError
from clp_plugin.reports.page.build import embedded_json, page_html
from clp_plugin.reports.page.studies import RecordStudy
from clp_plugin.store.outcomes import Outcome

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = '</script><script>alert(1)</script>{{ plotly }}"<b>'
SWEEP = [{"u": u, "pruned": 0, "acc": 0.5 + u / 20, "asr": u / 10, "ra": None} for u in (0.0, 2.0, 4.0)]
CHANNELS = pd.DataFrame(
    {"layer": "conv", "channel": range(20), "sigma": [1.0] * 19 + [9.0], "tac": np.linspace(0, 1, 20)}
)


def outcome(method: str, record: str, asr: float, **changes: Any) -> Outcome:
    counts = {"n_clean": 100, "n_triggered": 90, "base_rate": 0.0, "ra": 0.5}
    facts: dict[str, Any] = {
        "method": method, "command": "", "seed": 0, "device": "cpu", "seconds": 1.0,
        "provenance": {"attack": "badnets", "dataset": "d", "architecture": "a", "sha256": record, "path": f"runs/{record}"},
        "before": {"acc": 0.9, "asr": 1.0, **counts}, "after": {"acc": 0.8, "asr": asr, **counts}, "der": (2 - asr) / 2,
        "mask": {"conv": {"channels": 20, "pruned": [19]}},
    }  # fmt: skip
    return Outcome(**{**facts, **changes})


OUTCOMES = [outcome(m, r, asr) for r in ("first", "second") for m, asr in (("clp", 0.1), ("anp", 0.6))]
IMAGES = [(np.zeros((3, 8, 8), np.uint8), np.full((3, 8, 8), 255, np.uint8))]
STUDY = RecordStudy("runs/second", CHANNELS, SWEEP, IMAGES)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    parsed: dict[str, Any] = json.loads(found[1])
    return parsed


def test_text_from_files_stays_text() -> None:
    html = page_html(
        [outcome("clp", "r", 0.1, error=None, provenance={"path": HOSTILE, "attack": HOSTILE})], title=HOSTILE
    )
    assert "<script>alert(1)" not in html
    assert data_of(html)["cells"][0][1] == HOSTILE
    assert html.count("<script") == page_html(OUTCOMES).count("<script")


def test_numbers_are_those_of_the_outcomes() -> None:
    data = data_of(page_html(OUTCOMES, [STUDY]))
    cells = [dict(zip(data["columns"], row, strict=True)) for row in data["cells"]]
    assert [(cell["record"], cell["method"], cell["after_asr"]) for cell in cells] == [
        (record, method, asr) for record in ("first", "second") for method, asr in (("clp", 0.1), ("anp", 0.6))
    ]
    study = data["records"]["second"]
    assert study["layers"][0]["z"][19] == pytest.approx((9 - 1.4) / np.std([1.0] * 19 + [9.0]), rel=1e-3)
    assert study["pruned"] == {"conv": {"19": ["clp", "anp"]}}
    assert study["sweep"][1]["ra"] is None


def test_records_of_one_name_stay_apart() -> None:
    places = [{"path": f"{folder}/same", "sha256": folder, "attack": "badnets"} for folder in ("first", "second")]
    studies = [RecordStudy(f"{folder}/same", sweep=SWEEP[:n]) for n, folder in enumerate(("first", "second"), start=1)]
    data = data_of(page_html([outcome("clp", "r", 0.1, provenance=place) for place in places], studies))
    assert {name: len(study["sweep"]) for name, study in data["records"].items()} == {"same": 1, "same-2": 2}
    assert [row[0] for row in data["cells"]] == ["same", "same-2"]


def test_a_point_is_a_record_whatever_the_seeds() -> None:
    data = data_of(page_html([outcome("clp", "r", asr, seed=seed) for seed, asr in enumerate((0.2, 0.4))]))
    assert data["points"] == [["clp", "r", pytest.approx(0.1), pytest.approx(0.3)]]


def test_numbers_that_a_script_reported_have_columns_where_there_are_some() -> None:
    theirs = outcome("anp", "first", 0.5, implementation="bb", reported={"acc": 0.7})
    assert "reported_acc" in data_of(page_html([theirs]))["columns"]
    assert "reported_acc" not in data_of(page_html(OUTCOMES))["columns"]


def test_no_data_can_close_the_tag_that_holds_it() -> None:
    assert not set("<>&") & set(embedded_json({"a": "</script>&<!--"}))


def test_without_metrics_there_is_no_page() -> None:
    failed = outcome("clp", "r", 0.1, status="failed", error="no", after=None, der=None)
    with pytest.raises(ConfigError, match="at least one outcome"):
        page_html([failed])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a chromium on the path")
    with api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Page]:
    """The page in a browser without a network; no console message, no error and no request may come of it."""
    file = tmp_path / "page.html"
    file.write_text(page_html(OUTCOMES, [RecordStudy("runs/first", images=IMAGES), STUDY]), encoding="utf-8")
    context = browser.new_context(offline=True, color_scheme="dark", viewport={"width": 360, "height": 800})
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    yield page
    context.close()
    assert told == []


def test_the_slider_moves_by_keyboard_and_reads_the_sweep(opened: Page) -> None:
    assert "1 channels lie above u = 3.00" in opened.inner_text("#reading")
    assert "Measured at u = 2: ACC 60.0 %, ASR 20.0 %" in opened.inner_text("#reading")
    opened.focus("#u")
    for _ in range(30):
        opened.keyboard.press("ArrowRight")
    assert "0 channels lie above u = 4.50" in opened.inner_text("#reading")
    assert "Measured at u = 4: ACC 70.0 %, ASR 40.0 %" in opened.inner_text("#reading")


def test_rows_sort_and_filter(opened: Page) -> None:
    methods = [row.split("\t")[0] for row in opened.inner_text("#methods tbody").splitlines()]
    assert methods == ["clp", "anp"]
    opened.focus("#methods th:nth-child(9) button")
    opened.keyboard.press("Enter")
    opened.keyboard.press("Enter")
    assert opened.get_attribute("#methods th:nth-child(9)", "aria-sort") == "ascending"
    assert opened.inner_text("#methods tbody").startswith("anp")
    opened.fill("#filter", "first")
    assert opened.inner_text("#shown") == "2 of 4 runs"


def test_a_link_opens_its_record(opened: Page) -> None:
    opened.evaluate("location.hash = 'record=first'")
    opened.wait_for_function("document.getElementById('record').value === 'first'")
    assert "bench correlate" in opened.inner_text("#facts")
    assert opened.is_hidden("#evidence")
    assert opened.is_visible("#images img")


def test_a_method_opens_its_runs(opened: Page) -> None:
    opened.click("#methods tbody tr:first-child button")
    opened.wait_for_function("document.getElementById('filter').value === 'clp'")
    assert opened.inner_text("#shown") == "2 of 4 runs"
    assert opened.evaluate("location.hash") == "#method=clp"


def test_images_are_shown_with_what_they_are(opened: Page) -> None:
    assert opened.evaluate("[...document.querySelectorAll('#images img')].map((image) => image.alt)") == [
        "test image, clean", "test image, with trigger",
    ]  # fmt: skip
    assert opened.evaluate("document.querySelector('#images img').naturalWidth") == 8


def test_of_many_runs_the_first_are_shown_and_all_are_sorted_and_searched(browser: Any, tmp_path: Path) -> None:
    many = [outcome("clp", f"record-{i}", i / 1000) for i in range(1000)]
    file = tmp_path / "page.html"
    file.write_text(page_html(many), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    shown = "document.querySelectorAll('#cells tbody tr').length"
    assert page.evaluate(shown) == 200
    page.click("#cells th:has-text('after ASR') button")
    assert page.inner_text("#cells tbody tr:first-child").startswith("record-999\t")
    page.fill("#filter", "record-55")
    assert page.inner_text("#shown") == "11 of 1000 runs"
    assert page.evaluate(shown) == 11
    page.fill("#filter", "")
    page.click("#cells .more")
    assert page.evaluate(shown) == 1000


def test_a_narrow_dark_page_fits_its_screen_and_draws_on_dark(opened: Page) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    page_color = "getComputedStyle(document.body).backgroundColor"
    colors = opened.evaluate(f"[{page_color}, document.querySelector('#channels-figure .bg').style.fill]")
    assert colors[0] == colors[1] == "rgb(22, 24, 27)"


def test_a_printed_page_is_no_wider_than_its_paper(opened: Page) -> None:
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 1046, "height": 718})  # A4 landscape without its margins, at 96 dots per inch
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1046
    assert opened.is_hidden("nav")


def test_a_dot_tells_its_channel(opened: Page) -> None:
    opened.locator("#channels-figure").scroll_into_view_if_needed()
    dot = opened.locator("#channels-figure .scatterlayer .trace").last.locator("path").last.bounding_box()
    assert dot is not None
    opened.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    opened.wait_for_selector("#channels-figure .hoverlayer text")
    assert "conv, channel 19: sigma 9, pruned by clp, anp" in opened.inner_html("#channels-figure .hoverlayer")
