"""How weights are stored, before and after: in other files, as inputs, in fewer bits. None of it may be lost or come out otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, cli, prune, verify
from onnxprune.model.json_text import to_json
from onnxprune.model.patch import with_constants
from tests.oracle import Array, net, session

MODELS = Path(__file__).parent.parent / "models"
DIGITS = MODELS / "digits.onnx"
DATA = MODELS / "digits_calib.npz"
DENSE = """g (float[N,12] x) => (float[N,4] y) <float[12,32] w1, float[32] b1, float[32,24] w2, float[24,4] w3> {
    h = MatMul(x, w1)
    a = Add(h, b1)
    r = Relu(a)
    i = MatMul(r, w2)
    s = Relu(i)
    y = MatMul(s, w3)
}"""


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Digits with all weights in m.onnx.data."""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(DIGITS), path, save_as_external_data=True, location="m.onnx.data", size_threshold=256)
    return path


def inputs(path: Path, count: int = 40, width: int = 12) -> Path:
    np.savez(path, x=np.random.default_rng(0).standard_normal((count, width)).astype(np.float32))
    return path


# ---------------------------------------------------------------- data files


def test_the_data_of_a_renamed_original_is_spared(apart: Path) -> None:
    """Its data file has the name that the result's would have."""
    original = apart.with_name("original.onnx")
    apart.rename(original)
    data = (apart.parent / "m.onnx.data").read_bytes()
    prune(original, Budget("macs", 0.6), output=apart, recover="none", benchmark=False)
    assert (apart.parent / "m.onnx.data").read_bytes() == data
    fed = {"x": np.ones((1, 1, 16, 16), np.float32)}
    before, after = (session(onnx.load(p)).run(None, fed)[0] for p in (DIGITS, original))
    assert np.array_equal(before, after)
    assert session(onnx.load(apart)).run(None, fed)[0].shape == after.shape


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
def test_no_output_takes_the_place_of_the_weights(apart: Path, option: str) -> None:
    data = apart.with_name("m.onnx.data")
    files = {"-o": "s.onnx", option: "m.onnx.data" if option != "--report" else "r.md"}
    if option == "--report":
        data.rename(apart.with_name("r.md"))
        model = onnx.load(apart, load_external_data=False)
        for entry in (e for t in model.graph.initializer for e in t.external_data if e.key == "location"):
            entry.value = "r.md"
        onnx.save(model, apart)
        data = apart.with_name("r.md")
    held = data.read_bytes()
    told = [str(x) for k, v in files.items() for x in (k, apart.with_name(v))]
    result = CliRunner().invoke(cli.main, ["prune", str(apart), "--macs", "0.6", *told])
    assert result.exit_code == 2 and "is an input" in result.output
    assert data.read_bytes() == held and not apart.with_name("s.onnx").exists()


def test_the_result_object_spares_them_too(apart: Path) -> None:
    result = prune(apart, Budget("macs", 0.6), recover="none", benchmark=False)
    with pytest.raises(BadInputError, match="holds weights of the original"):
        result.save(apart.with_name("m.onnx.data"))


def test_bytes_are_those_of_both_files(apart: Path) -> None:
    result = prune(apart, Budget("macs", 0.6), output=apart.with_name("s.onnx"), recover="none", benchmark=False)
    before, after = result.report.cost.bytes
    on_disk = sum(apart.with_name(n).stat().st_size for n in ("s.onnx", "s.onnx.data"))
    assert before == sum(apart.with_name(n).stat().st_size for n in ("m.onnx", "m.onnx.data"))
    assert after < before and abs(on_disk / after - 1) < 0.15, "what is aligned takes a little more"


def test_external_data_is_quantized(apart: Path) -> None:
    result = prune(apart, Budget("macs", 0.6), data=DATA, then_quantize="int8", benchmark=False)
    plain = prune(DIGITS, Budget("macs", 0.6), data=DATA, then_quantize="int8", benchmark=False)
    assert [v.bytes for v in result.report.variants][2:] == [v.bytes for v in plain.report.variants][2:]


def test_layers_of_a_model_with_external_data_go_from_any_folder(
    apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = prune(apart, Budget("macs", 0.7), depth="only", data=DATA, benchmark=False)
    assert result.plan.bypassed


# ---------------------------------------------------------------- initializers that are inputs


def declared(ir_version: int) -> ModelProto:
    model = net(DENSE, opset=8 if ir_version < 4 else 17)
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_declared_as_inputs_stay_so(tmp_path: Path, ir_version: int) -> None:
    """IR version 3 wants it; no weight is kept twice."""
    model = declared(ir_version)
    result = prune(model, Budget("macs", 0.5), data=inputs(tmp_path / "x.npz"), round_to=1, benchmark=False)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.repair.fitted
    stored = sum(int(np.prod(t.dims)) for t in result.model.graph.initializer)
    assert stored == result.report.cost.params[1]
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.graph.input}
    assert all(sizes[t.name] == list(t.dims) for t in result.model.graph.initializer)


def test_new_constants_are_declared_where_all_are() -> None:
    model = declared(3)
    changed = with_constants(model, {("a", 1): np.zeros(32, np.float32), ("y", 0): np.zeros((1, 24), np.float32)})
    onnx.checker.check_model(changed)
    assert "s_refit" in {v.name for v in changed.graph.input}


# ---------------------------------------------------------------- fewer bits


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_behind_a_cast_keep_their_type(tmp_path: Path, kind: int) -> None:
    """Half of their bytes would be lost to the repair otherwise."""
    model = net(DENSE)
    halves = []
    for tensor in list(model.graph.initializer):
        if len(tensor.dims) == 2:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(numpy_helper.from_array(values, f"{tensor.name}_half"))
            halves.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*halves, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result = prune(model, Budget("size", 0.5), data=inputs(tmp_path / "x.npz", 400), round_to=1, benchmark=False)
    assert result.report.repair.fitted
    assert {t.data_type for t in result.model.graph.initializer if len(t.dims) == 2} == {kind}
    assert not any("_refit" in t.name for t in result.model.graph.initializer)
    assert result.report.check.tolerance <= 1e-3, "it computes in float32"


def ties(kind: str) -> ModelProto:
    model = net(DENSE)
    for tensor in model.graph.initializer:
        values = np.zeros(tensor.dims, np.float32) if kind == "zero" else np.ones(tensor.dims, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("kind", ["zero", "one"])
def test_units_that_are_worth_the_same_do_not_all_go_at_once(kind: str) -> None:
    result = prune(ties(kind), Budget("macs", 0.5), recover="none", round_to=1, benchmark=False)
    before, after = result.report.cost.macs
    assert 0.4 < after / before <= 0.5
    left = [g.units - g.removed for g in result.report.groups]
    assert min(left) >= 8, "each group gives its share"


@pytest.mark.parametrize("form", ["bfloat16", "int8", "uint8"])
def test_weights_of_fewer_bits_have_an_importance(form: str) -> None:
    """The units with large weights are those that stay."""
    model = net(DENSE)
    large = np.arange(32) % 2 == 0
    for tensor in list(model.graph.initializer):
        if tensor.name != "w1":
            continue
        values = numpy_helper.to_array(tensor) * np.where(large, 8, 0.1).astype(np.float32)
        for other in model.graph.initializer:  # they say nothing
            other.CopyFrom(numpy_helper.from_array(np.ones(other.dims, np.float32), other.name))
        model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "w1"))
        stored: Array
        if form == "bfloat16":
            stored = values.astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
            model.graph.node.insert(0, helper.make_node("Cast", ["q"], ["w1"], to=TensorProto.FLOAT))
        else:
            scale = float(np.abs(values).max() / 127)
            codes = np.rint(values / scale)
            stored = codes.astype(np.int8) if form == "int8" else (codes + 128).astype(np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
            model.graph.initializer.append(
                numpy_helper.from_array(np.array(128 if form == "uint8" else 0, stored.dtype), "zero")
            )
            model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w1"]))
        model.graph.initializer.append(numpy_helper.from_array(stored, "q"))
    result = prune(model, Budget("ratio", 0.5), recover="none", round_to=1, importance="l2", benchmark=False)
    (gone,) = {tuple(m.removed) for g in result.plan.groups for m in g.members if m.tensor == "q"}
    assert sum(large[list(gone)]) <= 2, gone


# ---------------------------------------------------------------- what is told


def test_what_is_no_number_is_null() -> None:
    text = to_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": None}}


def test_verify_refuses_files_that_are_not_the_result(tmp_path: Path) -> None:
    """All weights of a repaired result may be fitted; they must be those that the plan was written for."""
    plan, small, other = tmp_path / "p.json", tmp_path / "s.onnx", tmp_path / "o.onnx"
    prune(DIGITS, Budget("macs", 0.5), output=small, plan=plan, data=DATA, benchmark=False)
    prune(DIGITS, Budget("macs", 0.7), output=other, data=DATA, benchmark=False)
    assert verify(DIGITS, small, plan).error < 1e-4
    sevens = onnx.load(small)
    for tensor in sevens.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 7, np.float32), tensor.name))
    onnx.save(sevens, tmp_path / "sevens.onnx")
    for wrong in (DIGITS, other, tmp_path / "sevens.onnx"):
        with pytest.raises(onnxprune.VerificationError):
            verify(DIGITS, wrong, plan)
    again = json.loads(plan.read_text())
    del again["refit_sha256"]  # as older versions wrote it: shapes are compared still
    plan.write_text(json.dumps(again))
    with pytest.raises(onnxprune.VerificationError, match="has shape"):
        verify(DIGITS, DIGITS, plan)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("one", "nothing could be held out"),
        ("alike", "constant or all alike"),
        ("constant", "constant or all alike"),
        ("bytes", "too large for it"),
        ("good", ""),
    ],
)
def test_inputs_that_teach_little_are_named(tmp_path: Path, case: str, says: str) -> None:
    x = np.load(DATA)["x"]
    given = {
        "one": x[:1],
        "alike": np.repeat(x[:1], 20, axis=0),
        "constant": np.full((20, *x.shape[1:]), 0.7, np.float32),
        "bytes": np.random.default_rng(0).integers(0, 256, (20, *x.shape[1:])).astype(np.float32),
        "good": x[:32],
    }[case]
    np.savez(tmp_path / "d.npz", x=given)
    result = prune(DIGITS, Budget("macs", 0.7), data=tmp_path / "d.npz", benchmark=False)
    told = result.report.warnings
    assert any(says in t for t in told) if says else not told, told


def test_a_sparse_model_that_a_repair_fills_is_named(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.onnx"
    onnxprune.sparsify(DIGITS, sparsity=0.9, output=sparse, benchmark=False)
    told = prune(sparse, Budget("macs", 0.7), data=DATA, benchmark=False).report.warnings
    assert any("were zero" in t for t in told), told


def test_a_single_array_is_the_input_of_a_model_with_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(DATA)["x"][:32])
    np.savez(tmp_path / "x.npz", x=np.load(DATA)["x"][:32])
    one, other = (
        prune(DIGITS, Budget("macs", 0.7), data=tmp_path / n, benchmark=False).model for n in ("x.npy", "x.npz")
    )
    assert one == other
    (tmp_path / "folder").mkdir()
    shutil.move(tmp_path / "x.npy", tmp_path / "folder" / "x.npy")
    assert prune(DIGITS, Budget("macs", 0.7), data=tmp_path / "folder", benchmark=False).model == one


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.npz", {"x": np.zeros((0, 1, 16, 16), np.float32)}, "no samples"),
        ("none.npz", {}, "it has none at all"),
        ("text.npz", b"root:x:0:0", "no archive of arrays of numbers"),
    ],
)
def test_data_that_cannot_be_used_is_one_sentence(tmp_path: Path, name: str, content: object, says: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        assert isinstance(content, dict)
        np.savez(tmp_path / name, **content)
    with pytest.raises(BadInputError, match=says) as told:
        prune(DIGITS, Budget("macs", 0.7), data=tmp_path / name, benchmark=False)
    assert "pickle" not in str(told.value) and str(told.value).count("\n") == 0
