"""Pages in a real browser: what a person sees, hears and does. Debian's `chromium`, driven by Playwright.

ONNXPRUNE_SHOTS=FOLDER keeps the screenshots. ONNXPRUNE_BROWSER=required: a browser that is missing is a failure.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.report import renderer_for
from onnxprune.report.comparison import Comparison
from onnxprune.report.explore import ExploreReport
from onnxprune.report.page.text import amount
from onnxprune.report.profile import ProfileReport
from onnxprune.report.report import Report
from onnxprune.report.sparsity import SparsityReport
from tests.made_up_device import Device
from tests.oracle import net
from tests.pages import HARM, deep, renamed
from tests.test_depth import residual
from tests.test_plan import RESIDUAL

pytestmark = pytest.mark.slow
DIGITS, DATA = Path("models/digits.onnx"), Path("models/digits_calib.npz")
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPENS = 2.0  # seconds, at most, for two thousand nodes
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"none of {', '.join(NAMES)} is installed: apt-get install chromium"
        if os.environ.get("ONNXPRUNE_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


class Pages(dict[str, Path]):
    """One of each kind of report, and the hard ones; made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.reports: dict[str, Any] = {}

    def __missing__(self, name: str) -> Path:
        path = self.folder / f"{name}.html"
        self.reports[name] = getattr(self, name)()
        path.write_text(renderer_for("r.html").render(self.reports[name]), encoding="utf-8")
        self[name] = path
        return path

    def prune(self) -> Report:
        report = onnxprune.prune(DIGITS, Budget("max_drop", 0.2), data=DATA).report
        words = ("onnxprune", "prune", str(DIGITS), "-o", "small.onnx", "--max-drop", "0.2", "--plan", "plan.json")
        return replace(report, command=words, model=str(DIGITS), warnings=("One thing to know: this is a warning",))

    def speedup(self) -> Report:
        return onnxprune.prune(DIGITS, Budget("speedup", 1.5), data=DATA, runner=Device(8)).report

    def quantized(self) -> Report:
        return onnxprune.prune(DIGITS, Budget("macs", 0.5), data=DATA, then_quantize="int8").report

    def depth(self) -> Report:
        x = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
        np.savez(self.folder / "x.npz", x=x)
        options = {"data": self.folder / "x.npz", "depth": "auto", "round_to": 1, "benchmark": False}
        return onnxprune.prune(residual(0.01), Budget("macs", 0.45), **options).report

    def explore(self) -> ExploreReport:
        return onnxprune.explore(DIGITS, data=DATA).report

    def compare(self) -> Comparison:
        onnxprune.prune(DIGITS, Budget("ratio", 0.5), output=self.folder / "half.onnx", benchmark=False)
        return onnxprune.compare([DIGITS, self.folder / "half.onnx"], data=DATA, runs=3)

    def sparsify(self) -> SparsityReport:
        return onnxprune.sparsify(DIGITS, sparsity=0.5).report

    def profile(self) -> ProfileReport:
        onnxprune.prune(DIGITS, Budget("ratio", 0.5), output=self.folder / "small.onnx", benchmark=False)
        return onnxprune.profile(DIGITS, self.folder / "small.onnx", runs=3)

    def harm(self) -> Report:
        made = onnxprune.prune(renamed(net(RESIDUAL)), Budget("ratio", 0.5), round_to=1, benchmark=False).report
        return replace(made, warnings=HARM, model=HARM[0], command=("onnxprune", *HARM))

    def large(self) -> Report:
        options = {"round_to": 1, "check": False, "recover": "none", "benchmark": False}
        return onnxprune.prune(deep(400), Budget("ratio", 0.5), **options).report


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("pages"))


@dataclass
class Opened:
    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    seconds: float = 0.0


@pytest.fixture
def opened(browser: Any, pages: Pages) -> Iterator[Any]:
    contexts = []

    def open_page(name: str, size: str = "desktop", scheme: str = "light") -> Opened:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        made = Opened(context.new_page())
        made.page.on("console", lambda m: made.complaints.append(m.text) if m.type in ("error", "warning") else None)
        made.page.on("pageerror", lambda e: made.complaints.append(str(e)))
        made.page.on("request", lambda r: made.requests.append(r.url))
        start = time.perf_counter()
        made.page.goto(pages[name].as_uri(), wait_until="load")
        made.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        made.seconds = time.perf_counter() - start
        return made

    yield open_page
    for context in contexts:
        context.close()


def shot(opened: Opened, name: str, folder: Path, whole: bool = False) -> None:
    place = Path(os.environ.get("ONNXPRUNE_SHOTS") or folder)
    place.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=str(place / f"{name}.png"), full_page=whole)
    assert (place / f"{name}.png").stat().st_size > 10_000


ALL = ["prune", "speedup", "quantized", "depth", "explore", "compare", "sparsify", "profile", "harm", "large"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("desktop", "dark"), ("phone", "light")])
def test_it_opens_without_complaint_or_request(
    name: str, size: str, scheme: str, opened: Any, pages: Pages, tmp_path: Path
) -> None:
    found = opened(name, size, scheme)
    assert found.complaints == []
    assert [r for r in found.requests if r != pages[name].as_uri() and not r.startswith("data:")] == []
    wider = found.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, f"{wider} pixels too wide"
    shot(found, f"{name}-{size}-{scheme}", tmp_path, whole=name != "large")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_it_can_be_read_by_everybody(name: str, size: str, scheme: str, opened: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = opened(name, size, scheme)
    violations = Axe().run(found.page).response["violations"]
    serious = [
        (v["id"], v["impact"], [n["html"][:200] for n in v["nodes"][:3]])
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


# ---------------------------------------------------------------- the page says what the report says


def cells(found: Opened, caption: str) -> list[list[str]]:
    """Of the table with this caption."""
    rows: list[list[str]] = found.page.evaluate(
        """caption => [...document.querySelectorAll("table")].filter(t => t.caption.textContent === caption)
          .flatMap(t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent.trim())))""",
        caption,
    )
    return rows


def fact(found: Opened, name: str, within: str = "#summary") -> str:
    text: str = (
        found.page.locator(f"{within} .fact").filter(has=found.page.get_by_text(name, exact=True)).text_content()
    )
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["prune", "speedup", "quantized", "depth"])
def test_headline_groups_candidates_and_warnings_are_those_of_the_report(name: str, opened: Any, pages: Pages) -> None:
    found = opened(name)
    report = pages.reports[name].to_dict()
    before, after = report["cost"]["macs"]
    assert amount(after) in fact(found, "MACs") and amount(before) in fact(found, "MACs")
    gone = sum(g["removed"] for g in report["groups"])
    assert f"{gone:,} of {sum(g['units'] for g in report['groups']):,}" in fact(found, "Units removed")
    shown = {row[0]: row for row in cells(found, "Groups")}
    assert {*shown} == {g["id"] for g in report["groups"]}
    for g in report["groups"]:
        assert shown[g["id"]][1:5] == [g["origin"], g["kind"], f"{g['units']:,}", f"{g['units'] - g['removed']:,}"]
    tried = report.get("candidates", [])
    rows = cells(found, "Trade-off")
    assert [(r[0], r[-1].split(",")[0]) for r in rows[:-1]] == [(t["asked"], t["outcome"]) for t in tried]
    assert bool(tried) == (name in ("prune", "speedup")) and (not tried or rows[-1][0] == "the original")
    told = found.page.locator("#warnings").text_content() if report["warnings"] else ""
    assert all(w in told for w in report["warnings"])
    if "drop" in report:
        assert f"{report['drop']['measured']:.3g}" in fact(found, f"Loss ({report['drop']['metric']})")


def test_a_page_of_a_time_has_asked_expected_measured_and_where(opened: Any, pages: Pages, tmp_path: Path) -> None:
    found = opened("speedup")
    pace = pages.reports["speedup"].to_dict()["pace"]
    assert "1.5 times as fast" in found.page.text_content(".subtitle")
    assert f"{pace['measured']:.3g}× {pace['asked']:.3g}× asked" in fact(found, "Times as fast")
    assert fact(found, "Asked", "#time").startswith(f"Asked {pace['asked']:.3g}×")
    assert fact(found, "Expected", "#time").startswith(f"Expected {pace['expected']:.3g}×")
    low, high = pace["interval"]
    assert f"{pace['measured']:.3g}× {low:.3g} to {high:.3g} with 95 %" in fact(found, "Measured", "#time")
    assert pace["runner"] in fact(found, "Timed", "#time")
    saved = {row[0]: row for row in cells(found, "What each group saves")}
    assert [*saved] == [g["group"] for g in pace["groups"]] and saved
    for g in pace["groups"]:
        measured = "–" if g["measured"] is None else f"{g['measured']:.3g}"
        assert saved[g["group"]][3:5] == [f"{g['expected']:.3g}", measured]
    widths = {row[0]: row for row in cells(found, "Width against time")}
    assert [*widths] == [c["group"] for c in pace["curves"]]
    for c in pace["curves"]:
        assert widths[c["group"]][3] == f"{c['points'][0]['ms']:.3g}"
    marks = found.page.locator("#time-widths .series.curve [data-tip]").count()
    assert marks == sum(len(c["points"]) for c in pace["curves"])
    found.page.locator("#time-widths").scroll_into_view_if_needed()
    shot(found, "speedup-widths", tmp_path)


def test_models_beside_quantization_are_those_of_the_report(opened: Any, pages: Pages) -> None:
    found = opened("quantized")
    variants = pages.reports["quantized"].to_dict()["variants"]
    rows = [row for row in cells(found, "Beside quantization") if len(row) == 6]
    assert [row[:2] for row in rows] == [[v["name"], f"{v['bytes']:,}"] for v in variants] and len(rows) == 4
    assert found.page.locator("#variants .dot").count() == 4


def test_layers_that_went_are_those_of_the_report(opened: Any, pages: Pages) -> None:
    found = opened("depth")
    depth = pages.reports["depth"].to_dict()["depth"]
    assert [row[0] for row in cells(found, "Layers that went")] == [r["tensor"] for r in depth["bypassed"]]
    stayed = cells(found, "Layers that were looked at and stayed")
    assert [row[0] for row in stayed] == [r["tensor"] for r in depth["declined"]]


def test_two_thousand_nodes_open_at_once(opened: Any, pages: Pages) -> None:
    opened("large")  # the browser itself is warm then
    found = opened("large")
    assert found.page.evaluate("JSON.parse(document.getElementById('graph-data').textContent).nodes.length") == 2000
    assert found.seconds < OPENS
    assert pages["large"].stat().st_size < 2_000_000


def test_names_of_a_model_do_no_harm(opened: Any) -> None:
    found = opened("harm")
    found.page.hover("#summary")
    found.page.focus("#graph-canvas")
    for _ in range(12):
        found.page.keyboard.press("ArrowRight")
    found.page.keyboard.press("Enter")
    assert found.page.evaluate("window.harmed") is None
    assert found.page.locator("img").count() == 0 and found.page.locator("script").count() == 2
    assert found.complaints == []


def card(found: Opened) -> str:
    text: str = found.page.inner_text("#graph-card")
    return text


def test_the_graph_is_walked_by_keys(opened: Any) -> None:
    found = opened("prune")
    for _ in range(60):
        found.page.keyboard.press("Tab")
        if found.page.evaluate("document.activeElement.id") == "graph-canvas":
            break
    assert found.page.evaluate("document.activeElement.id") == "graph-canvas", "the tab key gets there"
    found.page.keyboard.press("ArrowDown")
    assert "node_Conv_138" in card(found) and "16" in card(found)
    found.page.keyboard.press("ArrowDown")
    assert "node_relu" in card(found)
    found.page.keyboard.press("ArrowUp")
    assert "node_Conv_138" in card(found)
    found.page.keyboard.press("Enter")
    assert "Group g" in card(found) and "units" in card(found)
    found.page.keyboard.press("Escape")
    assert "Choose a node" in card(found)
    before = found.page.evaluate("document.getElementById('graph-canvas').toDataURL()")
    found.page.keyboard.press("+")
    found.page.wait_for_function("old => document.getElementById('graph-canvas').toDataURL() !== old", arg=before)


def test_every_group_is_opened_by_keys(opened: Any) -> None:
    found = opened("large")
    groups = found.page.evaluate(
        "JSON.parse(document.getElementById('graph-data').textContent).groups.filter(g => g.facts.length).map(g => g.id)"
    )
    found.page.focus("#graph-canvas")
    seen = []
    for _ in groups:
        found.page.keyboard.press("g")
        seen.append(found.page.text_content("#graph-card h3").removeprefix("Group "))
    assert sorted(seen) == sorted(groups) and len(groups) > 400
    found.page.keyboard.press("Shift+G")
    assert found.page.text_content("#graph-card h3") == f"Group {seen[-2]}"
    found.page.keyboard.press("Escape")
    assert "Choose a node" in card(found)
    chips = found.page.locator("#graph-card .chip")
    assert chips.count() == 61
    chips.last.press("Enter")
    assert chips.count() == len(groups), "the rest of them is behind a button"
    assert found.page.evaluate("document.activeElement.closest('#graph-card') !== null"), (
        "and who pressed it is still there"
    )
    found.page.keyboard.press("Enter")
    assert found.page.evaluate("document.activeElement.id") == "graph-card" and "Group " in card(found)
    found.page.keyboard.press("Escape")
    assert found.page.evaluate("document.activeElement.id") == "graph-canvas" and "Choose a node" in card(found)


def test_groups_of_a_table_are_opened_by_keys_and_left_again(opened: Any) -> None:
    found = opened("prune")
    for _ in range(200):
        found.page.keyboard.press("Tab")
        if found.page.evaluate("document.activeElement.matches('#groups .chip')"):
            break
    active = "document.activeElement.textContent"
    first = found.page.evaluate(active)
    found.page.keyboard.press("ArrowDown")
    second = found.page.evaluate(active)
    assert first != second and found.page.evaluate("document.activeElement.matches('#groups .chip')")
    found.page.keyboard.press("Enter")
    assert found.page.text_content("#graph-card h3") == f"Group {second}"
    assert found.page.evaluate("document.activeElement.id") == "graph-canvas"
    found.page.keyboard.press("Escape")
    assert "Choose a node" in card(found) and found.page.evaluate(active) == second
    found.page.keyboard.press("Tab")
    assert not found.page.evaluate("document.activeElement.matches('#groups .chip')"), "a table is one stop"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_has_the_focus_is_seen(scheme: str, opened: Any) -> None:
    found = opened("speedup", scheme=scheme)
    found.page.emulate_media(reduced_motion="reduce")  # it scrolls at once
    seen = set()
    for _ in range(45):
        found.page.keyboard.press("Tab")
        tag, width, style, inside = found.page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
              return [e.tagName + (e.id ? "#" + e.id : ""), parseFloat(s.outlineWidth), s.outlineStyle,
                      b.bottom > 0 && b.top < innerHeight]; }"""
        )
        if tag == "BODY":
            break
        seen.add(tag)
        assert style == "solid" and width >= 2, f"{tag} has no outline"
        assert inside, f"{tag} is out of sight"
    assert {"CANVAS#graph-canvas", "INPUT#graph-find", "BUTTON#theme", "BUTTON"} <= seen


def test_nodes_and_groups_are_chosen_by_pointer_and_by_name(opened: Any, tmp_path: Path) -> None:
    found = opened("prune")
    data = "JSON.parse(document.getElementById('graph-data').textContent)"
    found.page.locator("#graph").scroll_into_view_if_needed()
    found.page.click("#graph-fit")
    place = found.page.evaluate(
        f"""() => {{
          const nodes = {data}.nodes, box = document.getElementById('graph-canvas').getBoundingClientRect();
          const xs = nodes.map(n => n[0]), ys = nodes.map(n => n[1]), W = 118, H = 32;
          const l = Math.min(...xs) - W, r = Math.max(...xs) + W, t = Math.min(...ys) - H, b = Math.max(...ys) + H;
          const s = Math.min(1.2, box.width / (r - l), box.height / (b - t)), n = nodes[2];
          return [box.left + box.width / 2 + (n[0] - (l + r) / 2) * s, box.top + box.height / 2 + (n[1] - (t + b) / 2) * s];
        }}"""
    )
    found.page.mouse.click(*place)
    assert "node_Conv_140" in card(found)
    found.page.click("#groups .chip >> nth=0")
    assert card(found).startswith("Group g")
    found.page.wait_for_timeout(1200)  # until the page has scrolled there
    shot(found, "prune-group", tmp_path)
    found.page.fill("#graph-find", "gemm")
    found.page.press("#graph-find", "Enter")
    assert card(found).startswith("Gemm") or card(found).startswith("MatMul")
    found.page.fill("#graph-find", "no such thing")
    found.page.press("#graph-find", "Enter")
    assert "Nothing here is called that" in card(found)


def test_light_and_dark_can_be_switched(opened: Any) -> None:
    found = opened("prune", scheme="light")
    back = "getComputedStyle(document.body).backgroundColor"
    light = found.page.evaluate(back)
    found.page.click("#theme")
    assert found.page.inner_text("#theme") == "Theme: light" and found.page.evaluate(back) == light
    found.page.click("#theme")
    assert found.page.inner_text("#theme") == "Theme: dark" and found.page.evaluate(back) != light
    dark = opened("prune", scheme="dark")
    assert dark.page.evaluate(back) != light


def test_it_prints_with_whole_tables(opened: Any, tmp_path: Path) -> None:
    found = opened("prune", scheme="dark")
    found.page.emulate_media(media="print")
    found.page.set_viewport_size({"width": 720, "height": 1040})  # A4 between its margins
    for unusable in ("header", ".tools", ".copy >> nth=0", "#graph-card", "#graph-strip", ".screen >> nth=0"):
        assert found.page.locator(unusable).is_hidden(), unusable
    assert found.page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 32, 44)", "dark ink, at night too"
    wider = found.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 2).length"
    )
    assert wider == 0, "nothing is cut off at the side"
    folded = opened("harm").page
    assert folded.locator("details:not([open])").count() == 1
    folded.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.locator("details:not([open])").count() == 0, "paper cannot be unfolded"
    assert found.page.locator(".chart .bar").first.is_visible()
    cut = found.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 2).length"
    )
    assert cut == 0
    found.page.pdf(path=str(tmp_path / "r.pdf"))
    assert (tmp_path / "r.pdf").stat().st_size > 20_000
