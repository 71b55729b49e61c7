"""Pruning beside quantization: both orders, and the table that compares them.

The judge is ONNX Runtime: its quantizer makes the models, its DequantizeLinear says what codes mean, its sessions say what a
pruned quantized model computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxprune import BadInputError, Budget, prune, runtime, sparsify, verify
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.cli import main
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.ops.pointwise import encode
from onnxprune.report.markdown import markdown
from tests.oracle import Array, net, session

MODELS = Path(__file__).parent.parent / "models"
DIGITS = MODELS / "digits.onnx"
DATA = MODELS / "digits_calib.npz"
QUIET: dict[str, Any] = {"benchmark": False}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration digits, sixteen at a time."""

    def __init__(self) -> None:
        with np.load(DATA) as archive:
            (self.name,) = [v.name for v in runtime.graph_inputs(onnx.load(DIGITS))]
            images = archive[self.name]
        self.left = iter([{self.name: images[i : i + 16]} for i in range(0, 64, 16)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.left, None)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    paths = {form: folder / f"{form}.onnx" for form in ("QDQ", "QOperator", "dynamic")}
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(
            DIGITS, paths[form.name], Reader(), quant_format=form, per_channel=True, weight_type=QuantType.QInt8
        )
    quantize_dynamic(DIGITS, paths["dynamic"], weight_type=QuantType.QUInt8)
    return paths


def top1(model: onnx.ModelProto) -> float:
    with np.load(MODELS / "digits_test.npz") as archive:
        data = {n: archive[n] for n in archive.files}
    name = model.graph.input[0].name
    labels = next(v for n, v in data.items() if n != name)
    return float((session(model).run(None, {name: data[name]})[0].argmax(axis=1) == labels).mean())


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32])
def test_codes_decode_to_the_nearest_values(axis: int, kind: Any) -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.05, 5).astype(np.float32)
    zero = np.zeros(5, kind) if kind is np.int32 else rng.integers(1, 5, 5).astype(kind)
    shape = (5, 7) if axis == 0 else (7, 5)
    value = rng.uniform(-0.04, 1.0, shape)
    found = encode({"axis": axis}, value, [np.zeros(shape, kind), scale, zero])
    assert found is not None and found.dtype == kind
    names = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    stored = [numpy_helper.from_array(a, n) for n, a in (("c", found), ("s", scale), ("z", zero))]
    node = helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], axis=axis)
    model = helper.make_model(
        helper.make_graph([node], "g", [], names, stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    decoded = session(model).run(None, {})[0]
    step = scale.reshape(-1, 1) if axis == 0 else scale
    assert (np.abs(decoded - value) <= step / 2 + 1e-6).all(), "half a step at most"


def test_codes_stay_in_range_and_are_refused_where_they_mean_something_else() -> None:
    codes, scale = np.zeros((2, 2), np.int8), np.array(0.1, np.float32)
    found = encode({}, np.full((2, 2), 1e3), [codes, scale])
    assert found is not None and (found == 127).all()
    assert encode({"block_size": 2}, np.ones((2, 2)), [codes, scale]) is None
    assert encode({}, np.ones((2, 2)), [codes, np.array(0.0, np.float32)]) is None
    assert encode({}, np.ones((3, 2)), [codes, scale]) is None


def test_a_bias_of_32_bit_codes_does_not_pin_its_layer() -> None:
    model = net(
        """g (float[N,4] x) => (float[N,3] y)
        <int8[6,4] w, float[6] ws, int8[6] wz, int32[6] b, float[6] bs, int32[6] bz, float[3,6] v>
        {
            dw = DequantizeLinear<axis = 0>(w, ws, wz)
            db = DequantizeLinear<axis = 0>(b, bs, bz)
            h = Gemm<transB = 1>(x, dw, db)
            r = Relu(h)
            y = Gemm<transB = 1>(r, v)
        }""",
        constants={
            "ws": np.full(6, 0.02, np.float32),
            "bs": np.full(6, 0.02, np.float32),
            "wz": np.zeros(6, np.int8),
            "bz": np.zeros(6, np.int32),
        },
    )
    analysis = analysis_of(load(model), Scope())
    assert [g.units for g in analysis.groups if g.removable] == [6]
    result = prune(model, Budget("ratio", 0.5), round_to=1, **QUIET)
    shapes = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert shapes["w"] == (3, 4) and shapes["b"] == (3,) and shapes["bs"] == (3,) and shapes["v"] == (3, 3)


# ---------------------------------------------------------------- quantized, then pruned


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_a_quantized_model_is_pruned_and_proved(form: str, quantized: dict[str, Path], tmp_path: Path) -> None:
    plan, small = tmp_path / "plan.json", tmp_path / "small.onnx"
    result = prune(quantized[form], Budget("macs", 0.7), data=DATA, recover="none", plan=plan, output=small, **QUIET)
    before, after = result.plan.macs
    assert after <= 0.7 * before and small.stat().st_size < quantized[form].stat().st_size
    verify(quantized[form], small, plan)


def test_decoded_weights_are_fitted_and_stay_codes(quantized: dict[str, Path], tmp_path: Path) -> None:
    files = [tmp_path / n for n in ("a.onnx", "b.onnx", "plan.json")]
    result = prune(quantized["QDQ"], Budget("macs", 0.5), data=DATA, output=files[0], plan=files[2], **QUIET)
    floats = [
        {t.name for t in m.graph.initializer if t.data_type == TensorProto.FLOAT}
        for m in (onnx.load(quantized["QDQ"]), result.model)
    ]
    assert floats[1] <= floats[0], "no weight became a float one"
    before, after = result.report.repair.damage
    assert after < before / 4
    plain = prune(quantized["QDQ"], Budget("macs", 0.5), data=DATA, recover="none", **QUIET)
    assert top1(result.model) > max(top1(plain.model), 0.97), "0.996 unpruned"
    verify(quantized["QDQ"], files[0], files[2])
    prune(quantized["QDQ"], apply=files[2], data=DATA, output=files[1], **QUIET)
    assert files[0].read_bytes() == files[1].read_bytes()


# ---------------------------------------------------------------- pruned, then quantized


def test_the_table_compares_all_four(tmp_path: Path) -> None:
    report, out = tmp_path / "r.json", tmp_path / "q.onnx"
    result = prune(DIGITS, Budget("macs", 0.5), data=DATA, then_quantize="int8", output=out, report=report)
    assert any(n.op_type == "DequantizeLinear" for n in result.model.graph.node)
    rows = json.loads(report.read_text())["variants"]
    names = [r["name"] for r in rows]
    assert names == ["original", "pruned", "quantized", "pruned and quantized"]
    sizes = dict(zip(names, (r["bytes"] for r in rows), strict=True))
    assert sizes["original"] == DIGITS.stat().st_size and sizes["pruned and quantized"] == out.stat().st_size
    assert sizes["pruned and quantized"] < min(sizes["pruned"], sizes["quantized"])
    assert rows[0]["divergence"] < 1e-9 < rows[1]["divergence"] and rows[0]["top1"] == 0
    assert all(r["ms"] > 0 for r in rows)
    assert top1(result.model) > 0.98, "0.996 unpruned"
    text = markdown(result.report)
    assert "## Beside quantization" in text and "| pruned and quantized |" in text


def test_without_data_the_made_up_inputs_calibrate() -> None:
    result = prune(DIGITS, Budget("ratio", 0.2), then_quantize="int8", **QUIET)
    assert result.report.calibration.made_up and len(result.report.variants) == 4


def test_a_quantized_result_cannot_be_verified_and_says_so(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "q.onnx"
    prune(DIGITS, Budget("macs", 0.7), data=DATA, then_quantize="int8", output=out, plan=plan, **QUIET)
    with pytest.raises(BadInputError, match="was quantized"):
        verify(DIGITS, out, plan)
    prune(DIGITS, apply=plan, data=DATA, output=out, **QUIET)
    assert verify(DIGITS, out, plan).error < 1e-4


def test_the_command_line_shows_it_and_refuses_other_types(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    arguments = ["prune", str(DIGITS), "-o", str(out), "--macs", "0.5", "--data", str(DATA), "--then-quantize"]
    found = CliRunner().invoke(main, [*arguments, "int8"])
    assert found.exit_code == 0 and "pruned and quantized" in found.output and out.exists()
    out.unlink()
    found = CliRunner().invoke(main, [*arguments, "int3"])
    assert found.exit_code == 2 and not out.exists()
    with pytest.raises(BadInputError, match="choose int8"):
        prune(DIGITS, Budget("macs", 0.5), then_quantize="int3")


def test_a_quantized_model_is_not_quantized_again(quantized: dict[str, Path]) -> None:
    with pytest.raises(BadInputError, match="quantized already"):
        prune(quantized["QDQ"], Budget("ratio", 0.2), then_quantize="int8", **QUIET)


def test_a_sparse_stored_model_is_quantized() -> None:
    thin = sparsify(DIGITS, sparsity=0.8, store="sparse", **QUIET).model
    assert thin.graph.sparse_initializer
    result = prune(thin, Budget("macs", 0.9), data=DATA, samples=16, then_quantize="int8", **QUIET)
    assert len(result.report.variants) == 4 and not result.model.graph.sparse_initializer


def test_outputs_are_declared_as_before() -> None:
    """The quantizer infers that a is 8; the exporter did not say so."""
    model = net(
        "g (float[N,8] x) => (float[M,a] y) <float[8,16] w, float[16,8] v> { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
    )
    result = prune(model, Budget("ratio", 0.5), then_quantize="int8", **QUIET)
    for mine, theirs in (
        (result.model.graph.output, model.graph.output),
        (result.model.graph.input, model.graph.input),
    ):
        assert [v.SerializeToString() for v in mine] == [v.SerializeToString() for v in theirs]


def test_what_the_quantizer_cannot_do_is_one_sentence() -> None:
    model = onnx.load(DIGITS)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    del broken.graph.node[:1]
    with pytest.raises(BadInputError, match="cannot quantize the broken model"):
        runtime.quantize(Model(broken), [], "the broken model")
