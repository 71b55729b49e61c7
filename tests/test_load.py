"""Bad input is refused in one sentence that says what and where; nothing else escapes `load`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.errors import (
    BadInputError,
    NothingPrunableError,
    OnnxPruneError,
    TargetNotReachableError,
    UnsupportedModelError,
    VerificationError,
)
from onnxprune.model.importer import import_graph
from onnxprune.model.load import load
from tests import fuzz_loader

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}> {
    a = MatMul(x, w)
    r = Relu(a)
    y = Add(r, b)
}"""


def model() -> ModelProto:
    return parser.parse_model(TEXT)


def refusal(source: str | Path | ModelProto) -> str:
    """The sentence with which `load` refuses."""
    with pytest.raises(BadInputError) as caught:
        load(source)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.endswith(".") and "\n" not in message and ";" in message, message
    return message


def test_exit_codes() -> None:
    codes = {
        OnnxPruneError: 1,
        BadInputError: 2,
        UnsupportedModelError: 2,
        TargetNotReachableError: 3,
        VerificationError: 4,
        NothingPrunableError: 5,
    }
    assert {e: e.exit_code for e in codes} == codes


# -- the file


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    loaded = load(path)
    assert loaded.proto == model()
    assert (loaded.path, loaded.folder) == (path, tmp_path)
    assert not loaded.has_external_data
    assert loaded.size_bytes == path.stat().st_size
    assert load(str(path)).sha256 == loaded.sha256
    in_memory = model()
    assert load(in_memory).proto is in_memory


def test_no_such_file(tmp_path: Path) -> None:
    assert "no file" in refusal(tmp_path / "none.onnx")
    assert "cannot be read" in refusal("nul\0byte.onnx")
    (tmp_path / "file").touch()
    assert "cannot be read" in refusal(tmp_path / "file" / "under.onnx")


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a plain file" in refusal(tmp_path / "pipe.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    path.chmod(0)
    assert "permissions" in refusal(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello, this is no model\n" * 10, "not an ONNX model"),
        (b"\xff" * 100, "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (onnx.OperatorSetIdProto(domain="x").SerializeToString(), "not an ONNX model"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert says in refusal(path)


def test_every_truncation_is_refused_or_whole(tmp_path: Path) -> None:
    data = model().SerializeToString()
    path = tmp_path / "m.onnx"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(BadInputError):
            load(path)


# -- the header


def _set(**fields: int) -> Callable[[ModelProto], None]:
    def edit(m: ModelProto) -> None:
        for field, value in fields.items():
            setattr(m, field, value)

    return edit


def _opset(version: int, domain: str = "") -> Callable[[ModelProto], None]:
    def edit(m: ModelProto) -> None:
        del m.opset_import[:]
        m.opset_import.add(domain=domain, version=version)

    return edit


def _double_opset(m: ModelProto) -> None:
    m.opset_import.add(domain="ai.onnx", version=16)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_set(ir_version=0), "no IR version"),
        (_set(ir_version=onnx.IR_VERSION + 1), "upgrade onnx"),
        (_opset(10_000), "knows only up to"),
        (_opset(0), "does not exist"),
        (_opset(-3), "does not exist"),
        (_opset(10_000, "ai.onnx.ml"), "knows only up to"),
        (_opset(1, "my.domain"), "opset is not imported"),
        (_double_opset, "twice"),
        (lambda m: m.ClearField("opset_import"), "imports no opset"),
        (lambda m: m.ClearField("graph"), "no graph"),
    ],
)
def test_header(edit: Callable[[ModelProto], None], says: str) -> None:
    m = model()
    edit(m)
    assert says in refusal(m)


# -- the graph


def _rename_output(m: ModelProto) -> None:
    m.graph.node[1].output[0] = "a"


def _cycle(m: ModelProto) -> None:
    m.graph.node[0].input[0] = "r"


def _self_cycle(m: ModelProto) -> None:
    m.graph.node[0].input[0] = "a"


def _duplicate_input(m: ModelProto) -> None:
    m.graph.input.append(m.graph.input[0])


def _duplicate_initializer(m: ModelProto) -> None:
    m.graph.initializer.append(m.graph.initializer[0])


def _output_is_initializer_name(m: ModelProto) -> None:
    m.graph.node[0].output[0] = "b"


def _not_produced(m: ModelProto) -> None:
    m.graph.node[2].input[1] = "ghost"


def _output_not_produced(m: ModelProto) -> None:
    m.graph.output[0].name = "ghost"


def _no_operator(m: ModelProto) -> None:
    m.graph.node[0].op_type = ""


def _too_many_inputs(m: ModelProto) -> None:
    m.graph.node[1].input.append("b")


def _needed_input_skipped(m: ModelProto) -> None:
    m.graph.node[0].input[1] = ""


def _unknown_attribute(m: ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("colour", 3))


def _attribute_of_wrong_type(m: ModelProto) -> None:
    node = helper.make_node("Transpose", ["a"], ["t"], perm="no list")
    m.graph.node.append(node)


def _attribute_missing(m: ModelProto) -> None:
    m.graph.node.append(helper.make_node("Cast", ["a"], ["t"]))


def _attribute_twice(m: ModelProto) -> None:
    m.graph.node.append(helper.make_node("Cast", ["a"], ["t"], to=1))
    m.graph.node[-1].attribute.append(m.graph.node[-1].attribute[0])


def _reference_outside_function(m: ModelProto) -> None:
    node = helper.make_node("Cast", ["a"], ["t"], to=1)
    node.attribute[0].ref_attr_name = "to"
    m.graph.node.append(node)


def _unknown_domain(m: ModelProto) -> None:
    m.graph.node[1].domain = "nobody.knows"


def _unknown_element_type(m: ModelProto) -> None:
    m.graph.input[0].type.tensor_type.elem_type = 99


def _graph_list(m: ModelProto) -> None:
    node = m.graph.node[1]
    node.domain = "my.own"
    m.opset_import.add(domain="my.own", version=1)
    attribute = node.attribute.add(name="g", type=AttributeProto.GRAPHS)
    attribute.graphs.add(name="inner")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_rename_output, "'a' is defined twice"),
        (_cycle, "cycle"),
        (_self_cycle, "cycle"),
        (_duplicate_input, "'x'"),
        (_duplicate_initializer, "'w'"),
        (_output_is_initializer_name, "'b' is defined twice"),
        (_not_produced, "reads 'ghost'"),
        (_output_not_produced, "Output 'ghost'"),
        (_no_operator, "no operator type"),
        (_too_many_inputs, "has 2 inputs where its operator takes 1"),
        (_needed_input_skipped, "skips its input 1"),
        (_unknown_attribute, "'colour'"),
        (_attribute_of_wrong_type, "type STRING where its operator takes INTS"),
        (_attribute_missing, "lacks the attribute 'to'"),
        (_attribute_twice, "twice"),
        (_reference_outside_function, "outside any function"),
        (_unknown_domain, "opset is not imported"),
        (_unknown_element_type, "element type 99"),
        (_graph_list, "list of graphs"),
    ],
)
def test_graph(edit: Callable[[ModelProto], None], says: str) -> None:
    m = model()
    edit(m)
    assert says in refusal(m)


def test_nodes_out_of_order_are_sorted_and_the_callers_model_is_left_alone() -> None:
    m = model()
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in m.graph.node]
    del m.graph.node[:]
    m.graph.node.extend(reversed(nodes))
    loaded = load(m)
    assert [n.op_type for n in loaded.proto.graph.node] == ["MatMul", "Relu", "Add"]
    assert [n.op_type for n in m.graph.node] == ["Add", "Relu", "MatMul"]
    onnx.checker.check_model(loaded.proto, full_check=True)


def test_subgraphs_may_come_before_what_they_capture_and_are_sorted() -> None:
    m = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4] x, bool c) => (float[4] y) {
            y = If(c) <then_branch = t () => (float[4] u) { u = Neg(v) v = Relu(a) },
                       else_branch = e () => (float[4] w) { w = Relu(x) }>
            a = Abs(x)
        }"""
    )
    proto = load(m).proto
    assert [n.op_type for n in proto.graph.node] == ["Abs", "If"]
    assert [n.op_type for n in proto.graph.node[1].attribute[0].g.node] == ["Relu", "Neg"]


def test_a_cycle_through_a_subgraph() -> None:
    m = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4] x, bool c) => (float[4] y) {
            y = If(c) <then_branch = t () => (float[4] u) { u = Neg(y) },
                       else_branch = e () => (float[4] w) { w = Relu(x) }>
        }"""
    )
    assert "cycle" in refusal(m)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString().replace(b"Relu", b"\xff\xfe\xfd\xfc"))
    assert "not UTF-8" in refusal(path)


def test_nesting(tmp_path: Path) -> None:
    inner = parser.parse_graph("leaf () => (float[4] u) { u = Relu(x) }")
    for depth in range(200):
        graph = onnx.GraphProto(name=f"g{depth}")
        node = graph.node.add(op_type="If", input=["c"], output=["u"])
        for branch in ("then_branch", "else_branch")[: 1 + (depth == 0)]:
            node.attribute.add(name=branch, type=AttributeProto.GRAPH).g.CopyFrom(inner)
        graph.output.add(name="u")
        inner = graph
    m = model()
    m.graph.CopyFrom(inner)
    refusal(m)


# -- tensors


def _tensor(edit: Callable[[TensorProto], None]) -> ModelProto:
    m = model()
    w = m.graph.initializer[0]
    w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w), "w"))
    edit(w)
    return m


def _dims(*dims: int) -> Callable[[TensorProto], None]:
    def edit(t: TensorProto) -> None:
        del t.dims[:]
        t.dims.extend(dims)

    return edit


def _both_fields(t: TensorProto) -> None:
    t.float_data.extend([1.0] * 12)


def _wrong_field(t: TensorProto) -> None:
    t.ClearField("raw_data")
    t.int64_data.extend(range(12))


def _typed_short(t: TensorProto) -> None:
    t.ClearField("raw_data")
    t.float_data.extend([1.0] * 11)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_dims(4, 4), "holds 48 bytes where its dims [4, 4] need 64"),
        (_dims(-4, -3), "negative"),
        (_dims(2**62, 2**62), "no memory holds"),
        (_dims(2**40), "holds 48 bytes"),
        (_dims(0, 2**62, 4), "no memory holds"),
        (_dims(*[1] * 65), "more than 64"),
        (lambda t: t.ClearField("raw_data"), "holds no data"),
        (lambda t: setattr(t, "raw_data", b"\0" * 47), "holds 47 bytes"),
        (lambda t: setattr(t, "data_type", 0), "element type 0"),
        (lambda t: setattr(t, "data_type", 77), "element type 77"),
        (lambda t: setattr(t, "data_type", TensorProto.STRING), "need"),
        (lambda t: t.segment.SetInParent(), "segments"),
        (_both_fields, "a field that its type does not use"),
        (_wrong_field, "a field that its type does not use"),
        (_typed_short, "holds 11 values"),
    ],
)
def test_tensor(edit: Callable[[TensorProto], None], says: str) -> None:
    message = refusal(_tensor(edit))
    assert says in message
    assert "'w'" in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_nan_is_refused_and_infinity_is_not(dtype: type[np.generic]) -> None:
    array = np.ones((3, 5), dtype)
    m = model()
    m.graph.initializer.append(numpy_helper.from_array(array, "extra"))
    load(m)
    if dtype is not ml_dtypes.float8_e4m3fn:
        array[1, 1] = np.inf
        m.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "extra"))
        load(m)
    array[2, 4] = np.nan
    m.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "extra"))
    message = refusal(m)
    assert "'extra'" in message and "NaN" in message


def test_nan_in_a_typed_field_and_in_a_constant_node() -> None:
    m = model()
    m.graph.initializer[1].float_data[1] = np.nan
    assert "'b' holds NaN" in refusal(m)
    m = model()
    bad = numpy_helper.from_array(np.array([1, np.nan], np.float32))
    m.graph.node.append(helper.make_node("Constant", [], ["k"], "bad", value=bad))
    assert "'bad'" in refusal(m)


def test_one_nan_alone_is_a_fill_value() -> None:
    m = model()
    m.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "fill"))
    load(m)


# -- external data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight lies in `w.bin` beside it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    m = model()
    w = m.graph.initializer[0]
    values = numpy_helper.to_array(w)
    w.ClearField("float_data")
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value="w.bin")
    (folder / "w.bin").write_bytes(values.astype(np.float32).tobytes())
    (folder / "m.onnx").write_bytes(m.SerializeToString())
    return folder / "m.onnx"


def _entries(path: Path, **entries: str) -> Path:
    m = onnx.load(path, load_external_data=False)
    w = m.graph.initializer[0]
    known = {e.key: e.value for e in w.external_data} | entries
    del w.external_data[:]
    for key, value in known.items():
        w.external_data.add(key=key, value=value)
    path.write_bytes(m.SerializeToString())
    return path


def test_external_data_is_found_and_not_kept(external: Path) -> None:
    loaded = load(external)
    assert loaded.has_external_data
    assert loaded.size_bytes == external.stat().st_size + 48
    assert not loaded.proto.graph.initializer[0].HasField("raw_data")
    constant = import_graph(loaded).nodes[0].inputs[1]
    assert constant.shape == (4, 3) and constant.dtype == np.float32
    np.testing.assert_array_equal(constant.values.reshape(-1), np.arange(1, 13))


def test_external_data_missing_or_short(external: Path) -> None:
    data = external.with_name("w.bin")
    data.write_bytes(bytes(47))
    assert "too short (47 bytes, 48 needed)" in refusal(external)
    data.unlink()
    assert "does not exist" in refusal(external)
    data.mkdir()
    assert "not a plain file" in refusal(external)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": "1"}, "too short"),
        ({"offset": "99999999999999999999999"}, "too short"),
        ({"offset": "-1"}, "no number"),
        ({"offset": "many"}, "no number"),
        ({"length": "44"}, "44 bytes where its dims [4, 3] need 48"),
        ({"length": "4096"}, "4096 bytes"),
        ({"location": ""}, "names no file"),
        ({"location": "w\0.bin"}, "names no file"),
        ({"location": "../w.bin"}, "outside"),
        ({"location": "sub/../../w.bin"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "C:\\w.bin"}, "outside"),
        ({"location": "..\\w.bin"}, "outside"),
        ({"location": "n" * 5000}, "File name too long"),
    ],
)
def test_external_entries(external: Path, entries: dict[str, str], says: str) -> None:
    shutil.copy(external.with_name("w.bin"), external.parent.parent / "w.bin")
    message = refusal(_entries(external, **entries))
    assert says in message and "'w'" in message


def test_external_data_behind_links(external: Path) -> None:
    data = external.with_name("w.bin")
    data.rename(external.parent / "real.bin")
    data.symlink_to("real.bin")
    load(external)  # stays in the folder
    outside = external.parent.parent / "outside.bin"
    (external.parent / "real.bin").rename(outside)
    data.unlink()
    data.symlink_to(outside)
    assert "outside" in refusal(external)


def test_external_nan(external: Path) -> None:
    external.with_name("w.bin").write_bytes(np.full(12, np.nan, np.float32).tobytes())
    assert "'w' holds NaN" in refusal(external)


def test_external_data_without_a_folder(external: Path) -> None:
    assert "path" in refusal(onnx.load(external, load_external_data=False))


# -- local functions

CALLS = """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) {
    y = local.f0(x)
}
"""


def _function(i: int, *calls: int) -> str:
    body = "\n".join(f"v{k + 1} = {'Relu' if c < 0 else f'local.f{c}'}(v{k})" for k, c in enumerate(calls))
    return f'<domain: "local", opset_import: ["": 17, "local": 1]> f{i} (v0) => (v{len(calls)}) {{ {body} }}\n'


def test_functions_are_inlined() -> None:
    m = parser.parse_model(CALLS + _function(0, 1, 1) + _function(1, -1, -1))
    proto = load(m).proto
    assert [n.op_type for n in proto.graph.node] == ["Relu"] * 4
    assert not proto.functions


def test_functions_that_nobody_calls_stay() -> None:
    m = parser.parse_model(CALLS.replace("local.f0", "Relu") + _function(0, -1))
    assert load(m).proto == m


def test_functions_that_call_themselves() -> None:
    assert "calls itself" in refusal(parser.parse_model(CALLS + _function(0, 1) + _function(1, 0)))


def test_functions_that_explode() -> None:
    depth = 40
    chain = "".join(_function(i, i + 1, i + 1) for i in range(depth)) + _function(depth, -1)
    assert "more than 1000000 nodes" in refusal(parser.parse_model(CALLS + chain))


# -- damaged models (see fuzz_loader.py)


def test_the_undamaged_models_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(40))
    for undamaged in fuzz_loader.models():
        (tmp_path / "m.onnx").write_bytes(undamaged.SerializeToString())
        load(tmp_path / "m.onnx")


@pytest.mark.slow
def test_damaged_models_are_refused_in_one_sentence() -> None:
    outcomes, wrong = fuzz_loader.run(3000)
    assert not wrong, f"repeat with --case {next(iter(wrong))}: {wrong}"
    assert sum(outcomes.values()) == 3000
    accepted = sum(n for text, n in outcomes.items() if text.startswith("accepted"))
    assert 300 < accepted < 2700, "the mutations are too harsh or too mild to mean anything"
