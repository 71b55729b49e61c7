"""Formats of reports: one's own beside Markdown and JSON, and suffixes that none has."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.cli import main
from onnxprune.report import Renderer, register, renderer, renderer_for
from onnxprune.report.report import Report
from tests.helpers import documented
from tests.oracle import net
from tests.test_plan import RESIDUAL


@pytest.fixture
def with_csv(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renderer]:
    """Known for one test."""
    monkeypatch.setattr(renderer, "_RENDERERS", dict(renderer._RENDERERS))
    made = documented(renderer, "GroupsAsCsv", Report=Report, BadInputError=BadInputError)()
    register(made)
    yield made


def test_ones_own_renderer_is_taken_by_its_suffix(with_csv: Renderer, tmp_path: Path) -> None:
    result = onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1, report=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["removed"]) for r in rows] == [g.removed for g in result.report.groups]
    assert sorted((int(r["units"]), int(r["removed"])) for r in rows) == [(6, 3), (8, 4)]
    assert with_csv.render(result.report) == (tmp_path / "r.csv").read_text()


def test_it_goes_with_the_command_line_too_and_may_refuse(with_csv: Renderer, tmp_path: Path) -> None:
    onnx.save(net(RESIDUAL), tmp_path / "m.onnx")
    call = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "s.onnx"), "-q", "--report", str(tmp_path / "r.csv")]
    done = CliRunner().invoke(main, ["sparsify", *call, "--sparsity", "0.5"])
    assert done.exit_code == 2 and not (tmp_path / "s.onnx").exists() and not (tmp_path / "r.csv").exists()
    assert CliRunner().invoke(main, ["prune", *call, "--ratio", "0.5"]).exit_code == 0
    assert (tmp_path / "r.csv").read_text().startswith("group,units,removed\n")


@pytest.mark.parametrize("name", ["r.htm", "r.txt", "r", "md", ".md"])
def test_a_suffix_without_renderer_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    for call in (onnxprune.prune, onnxprune.sparsify):
        target = {"budget": Budget("ratio", 0.5)} if call is onnxprune.prune else {"sparsity": 0.5}
        with pytest.raises(BadInputError, match=r"must end in \.html, \.md or \.json\.$"):
            call(tmp_path / "not there.onnx", report=tmp_path / name, **target)
    for command in ("prune", "sparsify"):
        target_ = ("--ratio", "0.5") if command == "prune" else ("--sparsity", "0.5")
        done = CliRunner().invoke(main, [command, "none.onnx", "-o", "s.onnx", *target_, "--report", name])
        assert done.exit_code == 2 and ".html, .md or .json" in done.stderr


def test_the_list_names_what_was_added(with_csv: Renderer) -> None:
    with pytest.raises(BadInputError, match=r"\.html, \.md, \.json or \.csv"):
        renderer_for("r.htm")
    assert renderer_for("R.CSV") is with_csv


@pytest.mark.parametrize("suffix", ["", "csv", ".CSV", ".tar.gz", "."])
def test_a_renderer_needs_a_suffix(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "_RENDERERS", dict(renderer._RENDERERS))
    made = documented(renderer, "GroupsAsCsv", Report=Report, BadInputError=BadInputError)()
    made.suffix = suffix
    with pytest.raises(BadInputError, match="no suffix"):
        register(made)


def test_json_and_markdown_say_the_same(tmp_path: Path) -> None:
    result = onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1, benchmark=False)
    found = json.loads(renderer_for("r.json").render(result.report))
    text = renderer_for("r.md").render(result.report)
    assert found["cost"]["macs"] == list(result.plan.macs)
    for group in found["groups"]:
        assert (
            f"| {group['id']} | {group['kind']} | {group['origin']} | {group['units']} | {group['removed']} |" in text
        )
