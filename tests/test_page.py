"""Pages as text: what is in them for each kind of report, what names from a model may do, how large they get."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.cli import main
from onnxprune.model.load import load
from onnxprune.report import renderer_for
from onnxprune.report.drawing import graph_of
from onnxprune.report.page import Bar, Point, page, tradeoff
from onnxprune.report.page.charts import BARS, gathered
from onnxprune.report.page.graph import placed
from onnxprune.report.page.parts import bars_picture
from onnxprune.report.page.text import amount, percent, short
from onnxprune.report.page.tradeoff import front
from onnxprune.report.report import Report
from tests.oracle import net
from tests.pages import HARM, deep, renamed, small
from tests.test_depth import residual
from tests.test_plan import RESIDUAL

DIGITS, DATA = Path("models/digits.onnx"), Path("models/digits_calib.npz")
LARGEST = 2_000_000  # bytes
HTML = renderer_for("r.html")


class Parsed(HTMLParser):
    """ids of sections, tags with their attributes, texts by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.within = ""
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.scripts.append(data)
        elif self.within != "style":
            self.text += data

    @property
    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.tags if tag == "section"]

    @property
    def graph(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(s for s in self.scripts if s.startswith("{")))
        return found


def test_a_report_of_prune_has_its_parts() -> None:
    report = onnxprune.prune(DIGITS, Budget("macs", 0.5), data=DATA).report
    found = Parsed(HTML.render(report))
    expected = ["summary", "graph", "widths", "curves", "groups", "pinned", "proof", "time", "stages"]
    assert [s for s in found.sections if s != "warnings"] == expected
    nodes = found.graph["nodes"]
    assert report.graph is not None and len(nodes) == len(report.graph.nodes)
    by_name = {n[5]: n for n in nodes}
    assert by_name["node_Conv_140"][4] == f"16→{16 - next(g.removed for g in report.groups if g.id == 'g1')}"
    assert {n[2] for n in nodes} >= {0, -1}  # nothing went from g0's neighbours, and the output is pinned
    assert "graph output 'logits' keeps its shape" in found.text


def test_warnings_come_first_and_what_is_missing_is_left_out() -> None:
    report = replace(small(), warnings=("Mind <this>",), check=None)
    found = Parsed(HTML.render(report))
    assert found.sections[0] == "warnings" and "Mind <this>" in found.text
    assert not {"curves", "tradeoff", "time", "repeat", "layers"} & {*found.sections}
    assert "Not verified" in found.text


def test_the_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    odd = tmp_path / "it's a $(model).onnx"
    odd.write_bytes(DIGITS.read_bytes())
    words = [str(odd), "-o", str(tmp_path / "s.onnx"), "--ratio", "0.5", "-q", "--report", str(tmp_path / "r.html")]
    assert CliRunner().invoke(main, ["prune", *words]).exit_code == 0
    found = Parsed((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert shlex.join(["onnxprune", "prune", *words]) in found.text
    assert shlex.join(["onnxprune", "profile", str(odd), str(tmp_path / "s.onnx")]) in found.text
    assert "it's a $(model).onnx, pruned" in found.text


@pytest.mark.slow
def test_models_that_were_tried_are_in_the_report_and_on_the_page() -> None:
    report = onnxprune.prune(DIGITS, Budget("max_drop", 0.2), data=DATA, benchmark=False).report
    assert [t.outcome for t in report.candidates].count("chosen") == 1
    macs = [t.macs for t in report.candidates]
    assert macs == sorted(macs, reverse=True) and len(macs) > 2
    chosen = next(t for t in report.candidates if t.outcome == "chosen")
    assert report.cost.macs is not None
    assert chosen.macs == pytest.approx(report.cost.macs.after / report.cost.macs.before, abs=1e-4)
    assert all(t.outcome == "passed" for t in report.candidates[: report.candidates.index(chosen)])
    found = Parsed(HTML.render(report))
    assert "tradeoff" in found.sections
    dots = [
        a for tag, a in found.tags if "data-tip" in a and (a["data-tip"] or "").split(":")[0].endswith("of the MACs")
    ]
    assert len(dots) >= len(report.candidates)


def test_curves_are_those_that_widths_were_decided_by() -> None:
    report = onnxprune.prune(DIGITS, Budget("macs", 0.6), data=DATA, benchmark=False).report
    removable = {g.id: g for g in report.groups}
    assert {c.group for c in report.curves} == {*removable}
    for c in report.curves:
        assert c.points[0] == (0, 0.0) and len(c.points) <= 9
        assert c.points[-1].removed == removable[c.group].removable
        assert [p.damage for p in c.points] == sorted(p.damage for p in c.points)


def test_layers_that_went_are_drawn_as_gone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = onnxprune.prune(residual(0.01), Budget("macs", 0.45), data=tmp_path / "x.npz", depth="auto", round_to=1)
    assert result.report.graph is not None
    gone = {n.key for n in result.report.graph.nodes if n.state == "gone"}
    assert gone == {*result.plan.nodes_removed} and gone
    assert all(n.macs is None or n.macs.after == 0 for n in result.report.graph.nodes if n.key in gone)
    assert "layers" in Parsed(HTML.render(result.report)).sections


def test_widths_and_costs_of_nodes_add_up() -> None:
    report = small()
    assert report.graph is not None and report.cost.macs is not None
    for k in (0, 1):
        assert sum(n.macs[k] for n in report.graph.nodes if n.macs is not None) == report.cost.macs[k]
    units = {g.id: (g.units, g.units - g.removed) for g in report.groups}
    convs = [n for n in report.graph.nodes if n.op == "Conv" and n.makes and n.makes[0] in units]
    assert convs and all(n.width == units[n.makes[0]] for n in convs)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5},
        {"threshold": 0.15, "then_prune": True},
        pytest.param({"pattern": "2:4", "data": DATA}, marks=pytest.mark.slow),
    ],
)
def test_a_report_of_sparsify_has_its_parts(options: dict[str, Any]) -> None:
    report = onnxprune.sparsify(DIGITS, benchmark=False, **options).report
    found = Parsed(HTML.render(report))
    assert {"summary", "graph", "weights", "left", "stages"} <= {*found.sections}
    assert ("removed" in found.sections) == ("then_prune" in options)
    sparse = [n for n in found.graph["nodes"] if n[2] != -2]
    assert len(sparse) == len({x.node for x in report.layers}), "every sparse layer is found in the graph"


@pytest.mark.parametrize("two", [False, True])
def test_a_report_of_profile_has_its_parts(two: bool, tmp_path: Path) -> None:
    onnxprune.prune(DIGITS, Budget("ratio", 0.5), output=tmp_path / "s.onnx", benchmark=False)
    report = onnxprune.profile(DIGITS, tmp_path / "s.onnx" if two else None, runs=2)
    found = Parsed(HTML.render(report))
    assert {"summary", "graph", "sum"} <= {*found.sections}
    timed = [n for n in found.graph["nodes"] if n[2] != -2]
    assert len(timed) == len({k.node for k in report.model.kernels} & {n.key for n in report.graph.nodes})  # type: ignore[union-attr]
    assert len(timed) > 5


# ---------------------------------------------------------------- names that mean harm


def test_names_from_a_model_stay_text() -> None:
    report = replace(onnxprune.prune(renamed(net(RESIDUAL)), Budget("ratio", 0.5), round_to=1, benchmark=False).report)
    report = replace(report, warnings=HARM, model=HARM[0], command=("onnxprune", "prune", *HARM))
    text = HTML.render(report)
    found = Parsed(text)
    assert [a for tag, a in found.tags if tag == "script"] == [{"type": "application/json", "id": "graph-data"}, {}]
    assert not any(tag == "img" or any(name.startswith("on") for name in a) for tag, a in found.tags)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x01\x7f]", text)
    assert len(text.encode()) < LARGEST / 10
    assert any("层名" in n[5] for n in found.graph["nodes"])
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|(?<=>)49(?=<)", text)


def test_nothing_is_loaded_and_nothing_else_may_run() -> None:
    text = HTML.render(small())
    policy = next(
        a["content"] or "" for tag, a in Parsed(text).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    links = re.findall(r"""(?:src|href|action)=["']([^"']*)""", text)
    assert {x for x in links if not x.startswith("#")} == {"data:,"}
    assert "style=" not in re.sub(r"(?s)<script>.*?</script>", "", text), "the policy allows none"


# ---------------------------------------------------------------- size, layout, the same bytes


def test_the_same_report_gives_the_same_bytes() -> None:
    report = onnxprune.prune(DIGITS, Budget("macs", 0.6), data=DATA, benchmark=False).report
    assert HTML.render(report) == HTML.render(report)


@pytest.mark.slow
def test_two_thousand_nodes_stay_small(tmp_path: Path) -> None:
    report = onnxprune.prune(
        deep(30), Budget("ratio", 0.5), round_to=1, check=False, recover="none", benchmark=False
    ).report
    large = graph_of(analysis_of(load(deep(400)), Scope()))
    assert len(large.nodes) == 2000
    text = HTML.render(replace(report, graph=large))
    assert len(text.encode()) < LARGEST / 2 and len(Parsed(text).graph["nodes"]) == 2000
    layers = [n for n in large.nodes if n.macs is not None and n.width is not None]
    assert len(layers) == 800 and all(f">{n.name}</" in text for n in layers), "the table has every layer"
    assert len(replace(report, graph=large).to_json()) < 1_200_000


def test_no_two_nodes_lie_on_each_other_and_edges_go_down() -> None:
    graph = graph_of(analysis_of(load(net(RESIDUAL)), Scope()))
    layout = placed(graph)
    assert len({*layout.positions}) == len(graph.nodes)
    for k, node in enumerate(graph.nodes):
        assert all(layout.positions[j][1] < layout.positions[k][1] for j in node.reads)
    assert len(layout.edges) == sum(len(n.reads) for n in graph.nodes)


def test_without_the_layout_library_the_groups_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
    found = Parsed(HTML.render(small()))
    assert "pip install fast-sugiyama" in found.text and "groups" in found.sections


# ---------------------------------------------------------------- the parts


def test_hundreds_of_bars_become_few_and_none_is_lost() -> None:
    each = [Bar(k, 2 * k, f"layer {k}") for k in range(1, 801)]
    shown, together = gathered(each, "layer", ("kept", "removed"))
    assert together == 8 and len(shown) == 100
    assert sum(b.kept for b in shown) == sum(b.kept for b in each)
    assert shown[1].kept == sum(range(9, 17)) and shown[1].tip == "layers 9 to 16 of 800: 100 kept, 200 removed"
    assert gathered(each[:BARS], "layer", ("kept", "removed")) == (each[:BARS], 1)
    text = str(bars_picture(each, "Widths", "channels", "layer", ("kept", "removed")))
    assert "800 layers in 100 bars, 8 neighbours in each" in text and text.count("data-tip") <= 200
    assert len(text) < 60_000
    few = str(bars_picture(each[:20], "Widths", "channels", "layer", ("kept", "removed")))
    assert "neighbours" not in few and few.count("data-tip") == 40


def test_the_front_is_what_no_other_beats() -> None:
    points = [Point("a", 1, 3), Point("b", 2, 1), Point("c", 2, 2), Point("d", 3, 1), Point("e", 0.5, float("nan"))]
    assert [p.name for p in front(points)] == ["a", "b"]
    text = page("Models", [tradeoff(points, "MACs", "loss")])
    assert Parsed(text).sections == ["tradeoff"] and text.count("data-tip") >= 4


@pytest.mark.parametrize(
    ("value", "shown"), [(6.1e6, "6.10 M"), (143_173, "143 k"), (31.2e3, "31.2 k"), (999, "999"), (1.0131e9, "1.01 G")]
)
def test_large_numbers_have_three_digits(value: float, shown: str) -> None:
    assert amount(value) == shown


def test_changes_and_names() -> None:
    assert [percent(x) for x in (-0.512, 0.004, 0.0)] == ["−51 %", "+0.4 %", "±0 %"]
    assert short("a" * 1000).count("a") < 200 and short("a\u202eb") == "a\N{REPLACEMENT CHARACTER}b"


def test_reports_read_back(tmp_path: Path) -> None:
    from onnxprune.model.typed_json import typed

    report = small()
    assert typed(Report, json.loads(report.to_json()), "the report").graph == report.graph
