"""What is written follows the JSON Schemas in the package, and these follow the typed values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator

import onnxprune
from onnxprune import BadInputError, Budget, Plan
from onnxprune.choose.options import Options
from onnxprune.model.typed_json import OTHERS, field_docs, plain, typed
from onnxprune.report import schema
from onnxprune.report.report import Report
from onnxprune.report.schemas import NAMES, generated
from onnxprune.report.sparsity import SparsityReport
from tests.oracle import net
from tests.test_depth import residual
from tests.test_plan import RESIDUAL

DIGITS, DATA = Path("models/digits.onnx"), Path("models/digits_calib.npz")


def faults(name: str, document: Any) -> list[str]:
    """What a file has wrong by its schema."""
    return [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema(name)).iter_errors(document)]


RUNS: dict[str, dict[str, Any]] = {
    "without data": {"budget": Budget("ratio", 0.5)},
    "a target of cost": {"budget": Budget("macs", 0.6), "benchmark": False},
    "data": {"budget": Budget("macs", 0.6), "data": DATA},
    "unchecked": {"budget": Budget("macs", 0.6), "recover": "none", "check": False, "benchmark": False},
    "quantize": {"budget": Budget("macs", 0.6), "data": DATA, "then_quantize": "int8"},
    "drop": {"budget": Budget("max_drop", 0.2), "data": DATA, "benchmark": False},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_prune(options: dict[str, Any], tmp_path: Path) -> None:
    plan, report = tmp_path / "p.json", tmp_path / "r.json"
    result = onnxprune.prune(DIGITS, plan=plan, report=report, **options)
    told, planned = json.loads(report.read_text()), json.loads(plan.read_text())
    assert faults("report", told) == [] and faults("plan", planned) == []
    assert Plan.from_json(plan.read_text()) == result.plan
    assert set(planned["settings"]) - {"target", "set_aside"} <= {f.name for f in fields(Options)}
    expected = {"latency_ms": options.get("benchmark", True), "variants": "then_quantize" in options}
    expected |= {"check": options.get("check", True), "drop": options["budget"].metric == "max_drop"}
    assert {k: k in told for k in expected} == expected


def test_depth(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = onnxprune.prune(residual(0.01), Budget("macs", 0.45), data=tmp_path / "x.npz", depth="auto", round_to=1)
    told = json.loads(result.report.to_json())
    assert faults("report", told) == [] and faults("plan", result.plan.to_dict()) == []
    assert told["depth"]["bypassed"] and told["calibration"]["samples"] == 64
    assert typed(Report, told, "the report").depth == result.report.depth


SPARSE: dict[str, dict[str, Any]] = {
    "share": {"sparsity": 0.5},
    "data": {"sparsity": 0.5, "data": DATA, "benchmark": False},
    "pattern": {"pattern": "2:4", "store": "auto", "benchmark": False},
    "then prune": {"threshold": 0.15, "then_prune": True, "benchmark": False},
    "then prune nothing": {"threshold": 1e-9, "then_prune": True, "benchmark": False},
}


@pytest.mark.parametrize("options", SPARSE.values(), ids=SPARSE.keys())
def test_sparsify(options: dict[str, Any], tmp_path: Path) -> None:
    result = onnxprune.sparsify(DIGITS, report=tmp_path / "r.json", **options)
    told = json.loads((tmp_path / "r.json").read_text())
    assert faults("sparsity-report", told) == []
    assert ("pruned" in told) == options.get("then_prune", False)
    assert typed(SparsityReport, told, "the report") == result.report


def test_what_is_not_documented_fails() -> None:
    result = onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1, benchmark=False)
    plan, report = result.plan.to_dict(), json.loads(result.report.to_json())
    assert faults("plan", plan) == [] and faults("report", report) == []
    plan["groups"][0]["members"][0]["extra"] = 1
    report["check"]["extra"] = report["extra"] = 1
    assert len(faults("plan", plan)) == 1 and len(faults("report", report)) == 2
    del plan["groups"][0]["members"][0]["extra"], plan["groups"][0]["members"][0]["axis"]
    assert len(faults("plan", plan)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_the_typed_values_say(name: str) -> None:
    """After a change: python -m onnxprune.report.schemas"""
    Draft202012Validator.check_schema(schema(name))
    assert schema(name) == generated(name)


def parts(kind: Any) -> Iterator[type]:
    """A dataclass and all that it is made of."""
    if is_dataclass(kind):
        assert isinstance(kind, type)
        yield kind
        for hint in get_type_hints(kind).values():
            yield from parts(hint)
    for argument in get_args(kind):
        yield from parts(argument)


@pytest.mark.parametrize(
    "kind", sorted({*parts(Plan), *parts(Report), *parts(SparsityReport)}, key=lambda k: k.__name__)
)
def test_every_field_is_documented(kind: type) -> None:
    assert set(field_docs(kind)) == {f.name for f in fields(kind)}  # type: ignore[arg-type]


def test_an_unknown_schema_is_refused() -> None:
    with pytest.raises(BadInputError, match="plan, report, sparsity-report"):
        schema("../secret")


WRONG: dict[str, tuple[str, Any]] = {
    "text for a number": ("groups[0].units", "8"),
    "a number with a fraction": ("groups[0].units", 8.5),
    "true for a number": ("groups[0].units", True),
    "a number for a flag": ("groups[0].exact", 1),
    "a huge number": ("groups[0].members[0].axis", 10**30),
    "null for text": ("groups[0].id", None),
    "text for a list": ("groups[0].members[0].removed", "12"),
    "an object for a list": ("mixed", {}),
    "a pair of three": ("macs", [1, 2, 3]),
    "a place without input": ("refit", [["n"]]),
    "an input that no node has": ("refit", [["n", 64]]),
    "a bypass without by": ("bypassed", [{"tensor": "a"}]),
    "a list for an object": ("settings", []),
}


@pytest.mark.parametrize(("path", "value"), WRONG.values(), ids=WRONG.keys())
def test_a_plan_is_checked_field_by_field(path: str, value: Any) -> None:
    result = onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1, benchmark=False)
    document = json.loads(result.plan.to_json())
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    place = document
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    place[last] = value
    with pytest.raises(BadInputError) as refused:
        Plan.from_json(json.dumps(document), "p.json")
    assert str(refused.value).startswith("p.json") and last in str(refused.value)


def test_fields_that_are_unknown_or_missing_are_named() -> None:
    document = json.loads(onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1).plan.to_json())
    group = document["groups"][1]
    with pytest.raises(BadInputError, match=r"the plan: 'groups\[1\]' has a field 'colour'"):
        typed(Plan, document | {"groups": [document["groups"][0], group | {"colour": 1}]}, "the plan")
    del group["classes"]
    with pytest.raises(BadInputError, match=r"the plan: 'groups\[1\]' lacks 'classes'"):
        typed(Plan, document, "the plan")


def test_plans_of_older_versions_lack_some_fields() -> None:
    model = net(RESIDUAL)
    plan = onnxprune.prune(model, Budget("ratio", 0.5), round_to=1, benchmark=False).plan
    document = plan.to_dict()
    for name in ("bypassed", "nodes_removed", "mixed", "refit", "refit_sha256"):
        del document[name]
    assert onnxprune.prune(model, apply=Plan.from_json(json.dumps(document)), benchmark=False).plan == plan


def test_numbers_that_are_not_finite_are_null() -> None:
    result = onnxprune.prune(onnx.load(DIGITS), Budget("macs", 0.6), data=DATA, benchmark=False)
    assert result.report.repair is not None
    document = plain(result.report)
    document["repair"]["damage"] = [0.1, float("inf")]
    report = typed(Report, document, "the report")
    told = json.loads(report.to_json())
    assert told["repair"]["damage"] == [0.1, None] and faults("report", told) == []


def test_notes_of_a_person_are_no_field() -> None:
    """They are kept in the plan, but the schema says what onnxprune writes."""
    (notes,) = (f for f in fields(Plan) if f.metadata == OTHERS)
    assert notes.name == "notes" and "notes" not in schema("plan")["properties"]
