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

import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.report import renderer_for
from onnxprune.report.profile import ProfileReport
from onnxprune.report.report import Report
from onnxprune.report.sparsity import SparsityReport
from tests.oracle import net
from tests.pages import HARM, deep, renamed
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

    def __missing__(self, name: str) -> Path:
        path = self.folder / f"{name}.html"
        path.write_text(renderer_for("r.html").render(getattr(self, name)()), encoding="utf-8")
        self[name] = path
        return path

    def prune(self) -> Report:
        report = onnxprune.prune(DIGITS, Budget("max_drop", 0.2), data=DATA).report
        words = ("onnxprune", "prune", str(DIGITS), "-o", "small.onnx", "--max-drop", "0.2", "--plan", "plan.json")
        return replace(report, command=words, model=str(DIGITS), warnings=("One thing to know: this is a warning",))

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


@pytest.mark.parametrize("name", ["prune", "sparsify", "profile", "harm", "large"])
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


@pytest.mark.parametrize("name", ["prune", "sparsify", "profile", "harm"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_everybody(name: str, scheme: str, opened: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = opened(name, "desktop", scheme)
    violations = Axe().run(found.page).response["violations"]
    serious = [
        (v["id"], v["impact"], [n["html"][:200] for n in v["nodes"][:3]])
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


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
    assert found.page.locator("header").is_hidden()
    assert found.page.locator(".chart .bar").first.is_visible()
    cut = found.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 2).length"
    )
    assert cut == 0
    found.page.pdf(path=str(tmp_path / "r.pdf"))
    assert (tmp_path / "r.pdf").stat().st_size > 20_000
