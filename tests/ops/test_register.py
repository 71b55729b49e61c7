"""Rules of users for operators of their own domain, and rules that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, Rule, cli, ops
from onnxprune.errors import RuleError
from onnxprune.ops.gradients import GRADIENTS
from onnxprune.ops.listing import PARTS, listing
from onnxprune.runtime import load_custom_ops

DOMAIN = "ai.onnx.contrib"
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]


def net(op: str, domain: str = "", outputs: int = 1) -> onnx.ModelProto:
    """x [n, 8] -> Gemm to 16 -> op -> Gemm to 4 of its first output."""
    rng = np.random.default_rng(0)
    weights = {"w": (8, 16), "b": (16,), "v": (16, 4)}
    parts = ["h", "rest"][:outputs]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="first"),
        helper.make_node(op, ["g"], parts, name="middle", domain=domain),
        helper.make_node("Gemm", ["h", "v"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


# ---------------------------------------------------------------- one's own operator


def negpos(ctx: onnxprune.ops.MapContext) -> list[Any]:
    """Negative and positive part of each element: both outputs have the units of the input."""
    return [ctx.maps(0), ctx.maps(0)]


NEGPOS = Rule((f"{DOMAIN}::NegPos",), "pointwise", negpos)


@pytest.fixture
def library() -> Iterator[str]:
    """A library of custom operators that ONNX Runtime's authors publish; no session keeps it after the test."""
    yield str(pytest.importorskip("onnxruntime_extensions").get_library_path())
    load_custom_ops([])


def test_own_operator_with_rule_is_pruned(library: str) -> None:
    model = net("NegPos", DOMAIN, outputs=2)
    with ops.registered(NEGPOS):
        result = onnxprune.prune(model, Budget("ratio", 0.5), round_to=1, benchmark=False, custom_ops=[library])
    widths = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert widths["w"] == (8, 8) and widths["v"] == (8, 4)
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    expected = np.minimum(x @ values["w"] + values["b"], 0) @ values["v"]
    got = ort.InferenceSession(result.model.SerializeToString(), options).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_own_operator_without_rule_pins_what_it_touches(library: str) -> None:
    found = onnxprune.inspect(net("NegPos", DOMAIN, outputs=2), custom_ops=[library])
    assert found["unknown_operators"] == ["NegPos 'middle'"]
    pins = [p for g in found["groups"] for p in g["pins"]]
    assert any("NegPos 'middle' has no rule" in p["reason"] and DOMAIN in p["reason"] for p in pins)
    assert any("onnxprune.register" in p["remedy"] for p in pins)


def test_own_operator_without_rule_on_the_command_line(library: str, tmp_path: Path) -> None:
    onnx.save(net("NegPos", DOMAIN, outputs=2), tmp_path / "m.onnx")
    words = [
        "prune",
        str(tmp_path / "m.onnx"),
        "-o",
        str(tmp_path / "o.onnx"),
        "--ratio",
        "0.5",
        "--custom-ops",
        library,
    ]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 5, result.output
    assert f"NegPos 'middle' has no rule of domain '{DOMAIN}'" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_own_operator_is_run_while_the_rest_is_tuned(library: str) -> None:
    pytest.importorskip("torch")
    model = net("NegPos", DOMAIN, outputs=2)
    feeds = [{"x": np.random.default_rng(k).normal(size=(1, 8)).astype(np.float32)} for k in range(32)]
    tuned = onnxprune.finetune(model, model, data=feeds, steps=2, batch=4, augment=False, custom_ops=[library])
    assert tuned.opaque and "NegPos" in tuned.opaque[0]


def test_unknown_operator_asks_for_its_library(tmp_path: Path) -> None:
    onnx.save(net("NegPos", DOMAIN, outputs=2), tmp_path / "m.onnx")
    result = CliRunner().invoke(cli.main, ["inspect", str(tmp_path / "m.onnx")])
    assert result.exit_code == 2
    assert f"Operator NegPos of domain {DOMAIN} is not known to ONNX Runtime" in result.stderr
    assert "--custom-ops" in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"does not exist; check the path"):
        load_custom_ops([tmp_path / "none.so"])
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BadInputError, match=r"cannot load .*text\.so as a custom operator library"):
        load_custom_ops([tmp_path / "text.so"])


# ---------------------------------------------------------------- what can be registered


@pytest.mark.parametrize("name", ["Relu", "Unheard", "ai.onnx::Unheard", "com.microsoft::Unheard"])
def test_rules_of_standard_domains_are_not_overridden(name: str) -> None:
    before = dict(ops.REGISTERED)
    with pytest.raises(BadInputError, match=f"A rule for '{name}' cannot be registered"):
        onnxprune.register(replace(NEGPOS, ops=("my.domain::Fine", name)))
    assert before == ops.REGISTERED


def test_only_rules_and_only_once() -> None:
    with pytest.raises(BadInputError, match=r"takes an onnxprune\.Rule, not str"):
        onnxprune.register("my.domain::Scale")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="must be a tuple of names"):
        onnxprune.register(replace(NEGPOS, ops="my.domain::Scale"))  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="names an operator twice"):
        onnxprune.register(replace(NEGPOS, ops=("d::A", "d::A")))
    with ops.registered(NEGPOS):
        assert ops.rule_for("NegPos", DOMAIN).maps is negpos
        with pytest.raises(BadInputError, match="has a registered rule already"):
            onnxprune.register(NEGPOS)
    assert ops.rule_for("NegPos", DOMAIN) is ops.UNKNOWN
    with pytest.raises(BadInputError, match="has no registered rule"):
        onnxprune.unregister(*NEGPOS.ops)


# ---------------------------------------------------------------- what rules give


def test_gradients_are_those_of_the_torch_table() -> None:
    functions = pytest.importorskip("onnxprune.training.functions")
    assert set(functions.FUNCTIONS) == GRADIENTS


def test_ops_says_what_is_missing() -> None:
    rows = {(r.domain, r.operator): r for r in listing()}
    conv = rows["ai.onnx", "Conv"]
    assert {"maps", "macs", "linear", "gradient"} <= set(conv.gives)
    assert all(
        {*r.gives, *r.missing} == set(PARTS) and len(r.gives) + len(r.missing) == len(PARTS) for r in rows.values()
    )
    assert all(("maps" in r.missing) == (r.kind == "unknown (pins)") for r in rows.values())
    told = json.loads(CliRunner().invoke(cli.main, ["ops", "--json"]).stdout)
    assert next(r for r in told if r["operator"] == "Conv" and r["domain"] == "ai.onnx")["gives"] == list(conv.gives)
    assert "missing" in CliRunner().invoke(cli.main, ["ops", "-v"]).stdout.splitlines()[0]
    with ops.registered(NEGPOS):
        assert any(r.operator == "NegPos" and r.gives == ("maps",) for r in listing())


# ---------------------------------------------------------------- rules that fail


def fail(*_: Any) -> Any:
    raise ValueError("broken on purpose")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXPRUNE_STRICT")


def broken(monkeypatch: pytest.MonkeyPatch, op: str, **changes: Any) -> None:
    monkeypatch.setitem(ops.TABLE, ("", op), replace(ops.TABLE["", op], **changes))


TOLD = "the rule of Relu failed on node 'middle': ValueError: broken on purpose; this is a bug of onnxprune, please report it"


def test_failed_rule_pins_and_is_named(monkeypatch: pytest.MonkeyPatch, lenient: None, tmp_path: Path) -> None:
    broken(monkeypatch, "Relu", maps=fail)
    found = onnxprune.inspect(net("Relu"))
    assert found["failed_rules"] == [TOLD]
    assert found["unknown_operators"] == []
    assert any(p["reason"] == TOLD for g in found["groups"] for p in g["pins"])
    assert all(g["removable"] == 0 for g in found["groups"])


def test_failed_rule_beside_a_prunable_layer_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, lenient: None, tmp_path: Path
) -> None:
    model = net("Relu")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 12), np.float32), "u"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((12, 4), np.float32), "t"))
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["y", "u"], ["z"], name="wide"),
            helper.make_node("MatMul", ["z", "t"], ["out"], name="end"),
        ]
    )
    model.graph.output[0].name = "out"
    onnx.save(model, tmp_path / "m.onnx")
    broken(monkeypatch, "Relu", maps=fail)
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    done = CliRunner().invoke(
        cli.main,
        [
            "prune",
            str(tmp_path / "m.onnx"),
            "-o",
            str(out),
            "--ratio",
            "0.5",
            "--round-to",
            "1",
            "--report",
            str(report),
        ],
    )
    assert done.exit_code == 0, done.output
    assert any(TOLD in text for text in json.loads(report.read_text())["warnings"])
    widths = {t.name: tuple(t.dims) for t in onnx.load(out).graph.initializer}
    assert widths["w"] == (8, 16) and widths["u"][1] == 6


def test_strict_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "Relu", maps=fail)
    monkeypatch.setenv("ONNXPRUNE_STRICT", "1")
    with pytest.raises(ValueError, match="broken on purpose"):
        onnxprune.inspect(net("Relu"))


def test_maps_of_a_wrong_shape_are_a_failure_of_the_rule(monkeypatch: pytest.MonkeyPatch, lenient: None) -> None:
    broken(monkeypatch, "Relu", maps=lambda ctx: [(np.zeros((3, 3, 3), np.int64),)])
    (text,) = onnxprune.inspect(net("Relu"))["failed_rules"]
    assert "the rule of Relu failed on node 'middle'" in text and "output 'h' got a facet of shape" in text


def test_failed_adjust_writes_nothing(monkeypatch: pytest.MonkeyPatch, lenient: None, tmp_path: Path) -> None:
    onnx.save(net("Relu"), tmp_path / "m.onnx")
    broken(monkeypatch, "Relu", adjust=fail)
    with pytest.raises(
        RuleError, match=r"The `adjust` of the rule of Relu failed on node 'middle'.*nothing is written"
    ):
        onnxprune.prune(tmp_path / "m.onnx", Budget("ratio", 0.5), output=tmp_path / "o.onnx", round_to=1)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("op, callback", [("Gemm", "macs"), ("Gemm", "linear")])
def test_other_failures_are_survived_and_told(
    monkeypatch: pytest.MonkeyPatch, lenient: None, tmp_path: Path, op: str, callback: str
) -> None:
    broken(monkeypatch, op, **{callback: fail})
    data = tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32))
    result = onnxprune.prune(net("Relu"), Budget("ratio", 0.5), round_to=1, benchmark=False, data=data)
    assert any(f"the `{callback}` of the rule of {op} failed" in text for text in result.report.warnings)


def test_failures_are_told_once_and_of_this_run_only(monkeypatch: pytest.MonkeyPatch, lenient: None) -> None:
    with monkeypatch.context() as patch:
        broken(patch, "Gemm", macs=fail)
        assert len(onnxprune.inspect(net("Relu"))["failed_rules"]) == 2  # one per Gemm
    assert onnxprune.inspect(net("Relu"))["failed_rules"] == []
