"""What is not changed comes out as it went in, bit for bit; what is changed brings nothing else with it."""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

from onnxprune.errors import BadInputError
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.model.save import save_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
ZOO = sorted((SHARED / "zoo").glob("*.onnx.z"))
BACKEND = sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("*.onnx"))


def same_bytes(a: ModelProto, b: ModelProto) -> bool:
    return bool(a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True))


def round_trip(source: ModelProto | Path) -> bool:
    model = load(source)
    return same_bytes(export_model(import_graph(model), model.proto), model.proto)


# -- nothing changed


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="no ../shared/zoo beside this clone")
@pytest.mark.parametrize("path", ZOO, ids=lambda p: p.name.removesuffix(".onnx.z"))
def test_zoo(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("zoo", SHARED / "zoo.py")
    assert spec is not None and spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    assert round_trip(zoo.load(path)[0])


@pytest.mark.parametrize("path", BACKEND, ids=lambda p: p.parent.name)
def test_backend_files(path: Path) -> None:
    assert round_trip(path)


@pytest.mark.slow
def test_backend_nodes() -> None:
    """All operators of the standard, in every variant that onnx itself tests (about 1,900 models)."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    assert len(cases) > 1000
    lost = [c.name for c in cases if c.model is not None and not round_trip(c.model)]
    assert not lost


def _everything() -> ModelProto:
    """One model with every part of the format that a graph library might drop."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 4])
    tensor.denotation = "TENSOR"
    tensor.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    sequence = helper.make_sequence_type_proto(tensor)
    optional = helper.make_optional_type_proto(sequence)
    mapping = helper.make_map_type_proto(TensorProto.STRING, tensor)
    sparse = onnx.TypeProto()
    sparse.sparse_tensor_type.elem_type = TensorProto.FLOAT
    nodes = [
        helper.make_node("Constant", [], ["k1"], "k1", value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Constant", [], ["unused"], "unused", value_int=3),
        helper.make_node("Constant", [], ["words"], "words", value_strings=["a", "b"]),
        helper.make_node("Add", ["x", "k1"], ["a"], "add", "documented"),
        helper.make_node("Clip", ["a", "", "six"], ["c"], "clip"),
        helper.make_node("Dropout", ["c", "", ""], ["d", ""], "drop"),
        helper.make_node("If", ["flag"], ["y"], "branch"),
        helper.make_node("Mine", ["d", "q4", "words"], ["", "z", ""], "mine", domain="my.own"),
    ]
    add, mine = nodes[3], nodes[7]
    add.metadata_props.add(key="origin", value="layer 1")
    add.overload = "v2"
    placed = add.device_configurations.add(configuration_id="gpu", pipeline_stage=1)
    placed.sharding_spec.add(tensor_name="a", device=[0, 1])
    nodes[0].attribute[0].doc_string = "a list"
    kinds: dict[str, Any] = {
        "one": 1,
        "half": 0.5,
        "whole": 2.0,
        "words": ["a", "b"],
        "weight": numpy_helper.from_array(np.ones((2, 2), np.float32), "inner name"),
        "type": sequence,
    }
    mine.attribute.extend(helper.make_attribute(k, v) for k, v in kinds.items())
    for name, kind in (("no_ints", AttributeProto.INTS), ("no_floats", AttributeProto.FLOATS)):
        mine.attribute.add(name=name, type=kind)
    mine.attribute.add(name="binary", type=AttributeProto.STRING, s=b"\xff\xfe")
    mine.attribute.add(name="nan", type=AttributeProto.FLOAT, f=float("nan"), doc_string="why")
    mine.attribute.add(name="sp", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(_sparse("v"))
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["d", "w"], ["m"]),
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Mul", ["m", "two"], ["t"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        doc_string="inner",
    )
    otherwise = helper.make_graph(
        [helper.make_node("Mul", ["d", "two"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array(3, np.float32), "two")],
    )
    otherwise.metadata_props.add(key="in", value="branch")
    nodes[6].attribute.extend(
        [
            helper.make_attribute("then_branch", then),
            helper.make_attribute("else_branch", otherwise),
        ]
    )
    typed = TensorProto(name="w", data_type=1, dims=[4, 4], float_data=range(16), doc_string="typed")
    typed.metadata_props.add(key="stage", value="1")
    bf16 = numpy_helper.from_array(np.ones(3, ml_dtypes.bfloat16), "unused bf16")
    packed = helper.make_tensor("q4", TensorProto.INT4, [3], [1, -2, 3])
    declared = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 4], "after add")
    declared.metadata_props.add(key="k", value="v")
    half_known = onnx.ValueInfoProto(name="d")
    half_known.type.tensor_type.elem_type = TensorProto.FLOAT
    hidden = numpy_helper.from_array(np.array(9, np.float32), "two")  # both branches have their own
    graph = helper.make_graph(
        nodes,
        "everything",
        [
            helper.make_value_info("x", tensor),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("six", TensorProto.FLOAT, []),
            helper.make_value_info("opt", optional),
            helper.make_value_info("map", mapping),
            helper.make_value_info("sp_in", sparse),
        ],
        [
            helper.make_value_info("y", tensor),
            helper.make_empty_tensor_value_info("z"),
            helper.make_tensor_value_info("q4", TensorProto.INT4, [3]),
        ],
        [bf16, typed, numpy_helper.from_array(np.array(6, np.float32), "six"), packed, hidden],
        "graph doc",
        [declared, half_known, helper.make_tensor_value_info("ghost", 1, [1])],
        sparse_initializer=[_sparse("sparse")],
    )
    graph.metadata_props.add(key="gk", value="gv")
    for tensor_name in ("a", "elsewhere"):
        note = graph.quantization_annotation.add(tensor_name=tensor_name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="six")
    opsets = [helper.make_opsetid(d, v) for d, v in (("my.own", 3), ("", 21), ("com.microsoft", 1))]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=11,
        producer_name="p",
        producer_version="1",
        domain="dom",
        model_version=7,
        doc_string="doc",
    )
    model.configuration.add(name="gpu", num_devices=2, device=["a", "b"])
    helper.set_model_props(model, {"z": "1", "a": "2"})
    model.functions.append(
        parser.parse_function('<domain: "my.own", opset_import: ["": 21]> uncalled (u) => (v) { v = Relu(u) }')
    )
    model.training_info.add().update_binding.add(key="w", value="t")
    return model


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1, 2], np.float32), name)
    indices = numpy_helper.from_array(np.array([[0, 1], [1, 3]], np.int64), name + "_at")
    return helper.make_sparse_tensor(values, indices, [2, 4])


def test_everything() -> None:
    assert round_trip(_everything())


def test_reading_all_values_changes_nothing() -> None:
    model = load(_everything())
    graph = import_graph(model)
    for tensor in _constants(graph):
        assert tensor.values.shape == tensor.shape
        assert tensor.values.dtype == tensor.dtype
        with pytest.raises(ValueError, match="read-only"):
            tensor.values[...] = 0
    assert same_bytes(export_model(graph, model.proto), model.proto)


def test_a_gs_copy_exports_the_same() -> None:
    """graphsurgeon's own copy forgets where nodes came from; names find them again."""
    model = load(_everything())
    copy = import_graph(model).copy()
    assert same_bytes(export_model(copy, model.proto), model.proto)


def test_fields_that_onnx_does_not_know_stay() -> None:
    unknown = b"\xc0\x3e\x07" + b"\xca\x3e\x03abc"  # field 1000: varint 7; field 1001: bytes
    model = parser.parse_model(CONV)
    model.MergeFromString(unknown)
    model.graph.MergeFromString(unknown)
    assert model.SerializeToString().count(b"abc") == 2
    assert round_trip(model)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            yield tensor
    for sub in graph.subgraphs():
        yield from _constants(sub)


# -- how the graph looks


def test_constants_are_lazy_and_forgotten() -> None:
    graph = import_graph(load(_everything()))
    k1 = graph.tensors()["k1"]
    assert isinstance(k1, gs.Constant) and not k1.inputs
    np.testing.assert_array_equal(k1.values, np.array([1, 2, 3, 4], np.float32))
    held = k1.values
    assert k1.values is held
    assert not isinstance(k1._values, np.ndarray)


def test_skipped_inputs_and_outputs_keep_their_place() -> None:
    graph = import_graph(load(_everything()))
    drop = next(n for n in graph.nodes if n.name == "drop")
    assert [t.name for t in drop.inputs] == ["c", "", ""]
    assert [t.is_empty() for t in drop.outputs] == [False, True]


def test_captured_tensors_are_the_outer_objects() -> None:
    graph = import_graph(load(_everything()))
    outer = graph.tensors()
    branch = next(n for n in graph.nodes if n.op == "If")
    then, otherwise = branch.attrs["then_branch"], branch.attrs["else_branch"]
    assert then.nodes[0].inputs[0] is outer["d"]
    assert then.nodes[0].inputs[1].name == "w"
    assert then.nodes[1].inputs[1] is not otherwise.nodes[0].inputs[1]
    np.testing.assert_array_equal(then.nodes[1].inputs[1].values, 2)
    np.testing.assert_array_equal(otherwise.nodes[0].inputs[1].values, 3)


@pytest.mark.parametrize(
    ("data_type", "values"),
    [
        (TensorProto.INT4, [1, -2, 3]),
        (TensorProto.UINT4, [1, 2, 3, 4, 5]),
        (TensorProto.FLOAT8E4M3FN, [1.0, 2.0, -0.5]),
        (TensorProto.FLOAT8E5M2, [1.0, 2.0]),
        (TensorProto.BFLOAT16, [1.0, -3.0]),
        (TensorProto.FLOAT16, [1.0, -3.0]),
        (TensorProto.COMPLEX64, [1 + 2j, 3]),
        (TensorProto.BOOL, [True, False]),
        (TensorProto.STRING, ["a", "é"]),
        (TensorProto.UINT64, [2**63]),
    ],
)
def test_element_types(data_type: int, values: list[Any]) -> None:
    """Values are right, and slicing and writing them back gives the same type."""
    model = parser.parse_model(CONV)
    tensor = helper.make_tensor("extra", data_type, [len(values)], values)
    model.graph.initializer.append(tensor)
    model.graph.output.append(helper.make_tensor_value_info("extra", data_type, [len(values)]))
    loaded = load(model)
    graph = import_graph(loaded)
    extra = graph.outputs[-1]
    assert extra.values.tolist() == values
    extra.values = extra.values[:1]
    out = export_model(graph, loaded.proto).graph.initializer[-1]
    assert (out.data_type, list(out.dims)) == (data_type, [1])
    assert numpy_helper.to_array(out).tolist() == values[:1]


# -- something changed

CONV = """<ir_version: 8, opset_import: ["": 17]> net (float[N,2,8,8] x) => (float[N,3,8,8] y)
<float[3,2,1,1] w = {1,2,3,4,5,6}, float[3] b = {1,2,3}, float[3,1,1] s = {1,2,3}, float[1] orphan = {9}> {
    c = Conv<kernel_shape = [1, 1]> (x, w, b)
    k = Constant<value_ints = [0, 1, 2, 3]> ()
    t = Transpose<perm = [0, 1, 2, 3]> (c)
    y = Mul(t, s)
}"""


def _changed(edit: Any, text: str = CONV) -> tuple[ModelProto, ModelProto]:
    """The model before and after `edit(graph)`."""
    model = load(parser.parse_model(text))
    graph = import_graph(model)
    edit(graph)
    before = model.proto.SerializeToString()
    after = export_model(graph, model.proto)
    assert model.proto.SerializeToString() == before, "export changed the original"
    return model.proto, after


def _names(protos: Any) -> list[str]:
    return [p.name for p in protos]


def test_new_values_keep_name_place_and_documentation() -> None:
    model = load(_everything())
    graph = import_graph(model)
    branch = next(n for n in graph.nodes if n.op == "If")
    w = branch.attrs["then_branch"].nodes[0].inputs[1]
    w.values = np.zeros((4, 2), np.float32)
    out = export_model(graph, model.proto)
    new = out.graph.initializer[1]
    assert (new.name, new.doc_string, list(new.dims)) == ("w", "typed", [4, 2])
    assert new.metadata_props == model.proto.graph.initializer[1].metadata_props
    assert not new.float_data and len(new.raw_data) == 32
    new.CopyFrom(model.proto.graph.initializer[1])
    assert same_bytes(out, model.proto), "something else changed"


def test_renamed_weight() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[1].name = "kernel"

    before, after = _changed(edit)
    assert _names(after.graph.initializer) == ["kernel", "b", "s", "orphan"]
    assert list(after.graph.node[0].input) == ["x", "kernel", "b"]
    assert after.graph.initializer[0].float_data == before.graph.initializer[0].float_data
    assert list(after.graph.node)[1:] == list(before.graph.node)[1:]


def test_replaced_weight_drops_the_old_one_but_not_orphans() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[1] = gs.Constant("new", np.ones((3, 2, 1, 1), np.float32))

    _, after = _changed(edit)
    assert _names(after.graph.initializer) == ["b", "s", "orphan", "new"]
    onnx.checker.check_model(after, full_check=True)


def test_replaced_by_the_same_name_takes_its_place() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[1] = gs.Constant("w", np.ones((3, 2, 1, 1), np.float32))

    _, after = _changed(edit)
    assert _names(after.graph.initializer) == ["w", "b", "s", "orphan"]


def test_shared_values_under_a_new_name_are_copied_as_stored() -> None:
    def edit(graph: gs.Graph) -> None:
        w = graph.nodes[0].inputs[1]
        graph.nodes[0].inputs[1] = gs.Constant("twin", w._values)

    before, after = _changed(edit)
    assert after.graph.initializer[-1].float_data == before.graph.initializer[0].float_data
    assert after.graph.initializer[-1].name == "twin"


def test_shared_values_do_not_bring_their_documentation() -> None:
    model = load(_everything())
    graph = import_graph(model)
    branch = next(n for n in graph.nodes if n.op == "If")
    w = branch.attrs["then_branch"].nodes[0].inputs[1]
    branch.attrs["then_branch"].nodes[0].inputs[1] = gs.Constant("twin", w._values)
    out = export_model(graph, model.proto)
    (twin,) = out.graph.node[6].attribute[0].g.initializer
    assert (twin.name, twin.doc_string, list(twin.float_data)) == ("twin", "", list(range(16)))


def test_removed_node_takes_its_constants_and_declarations_along() -> None:
    def edit(graph: gs.Graph) -> None:
        conv, transpose, mul = graph.nodes
        mul.inputs[0] = conv.outputs[0]
        transpose.inputs.clear()
        transpose.outputs.clear()
        graph.nodes.remove(transpose)

    before, after = _changed(edit)
    assert [n.op_type for n in after.graph.node] == ["Conv", "Constant", "Mul"]
    assert after.graph.node[1] == before.graph.node[1]  # an orphan of the file stays
    onnx.checker.check_model(after, full_check=True)


def test_added_node_is_declared_and_finds_its_constant() -> None:
    def edit(graph: gs.Graph) -> None:
        mul = graph.nodes[-1]
        middle = gs.Variable("middle", np.float32, ("N", 3, 8, 8))
        by = gs.Constant("by", np.array([2.0], np.float32))
        add = gs.Node("Add", "added", inputs=[mul.inputs[0], by], outputs=[middle])
        mul.inputs[0] = middle
        graph.nodes.insert(len(graph.nodes) - 1, add)

    before, after = _changed(edit)
    assert [n.op_type for n in after.graph.node] == ["Conv", "Constant", "Transpose", "Add", "Mul"]
    assert _names(after.graph.initializer)[-1] == "by"
    assert after.graph.value_info[-1] == helper.make_tensor_value_info("middle", 1, ["N", 3, 8, 8])
    assert list(after.graph.node)[:3] == list(before.graph.node)[:3]
    onnx.checker.check_model(after, full_check=True)


def test_changed_attributes_keep_their_type() -> None:
    def edit(graph: gs.Graph) -> None:
        mine = next(n for n in graph.nodes if n.op == "Mine")
        mine.attrs["whole"] = 3
        mine.attrs["one"] = np.int64(5)
        mine.attrs["no_ints"] = [1]
        mine.attrs["words"] = ["c"]
        mine.attrs["added"] = [1.5]
        del mine.attrs["half"]
        transpose = gs.Node("Transpose", "t", {"perm": []}, inputs=mine.inputs[:1])
        transpose.outputs = [gs.Variable("tt")]
        graph.nodes.append(transpose)

    model = load(_everything())
    graph = import_graph(model)
    edit(graph)
    out = export_model(graph, model.proto)
    after = {a.name: a for a in out.graph.node[-2].attribute}
    old = {a.name: a for a in model.proto.graph.node[-1].attribute}
    assert list(after) == [*(n for n in old if n != "half"), "added"]
    assert after["whole"] == helper.make_attribute("whole", 3.0)
    assert after["one"] == helper.make_attribute("one", 5)
    assert after["no_ints"] == helper.make_attribute("no_ints", [1])
    assert after["words"] == helper.make_attribute("words", ["c"])
    assert after["added"] == helper.make_attribute("added", [1.5])
    for same in ("weight", "type", "no_floats", "binary", "sp"):
        assert after[same] == old[same]
    assert after["nan"].SerializeToString() == old["nan"].SerializeToString()
    assert out.graph.node[-1].attribute[0].type == AttributeProto.INTS


def test_changed_shapes_are_patched_and_denotations_stay() -> None:
    model = load(_everything())
    graph = import_graph(model)
    a = graph.tensors()["a"]
    assert a.shape == ("N", 4)
    a.shape = ["N", 2]
    graph.inputs[0].shape = ("batch", 4)
    out = export_model(graph, model.proto)
    declared = out.graph.value_info[0]
    assert declared.type.tensor_type.shape.dim[1].dim_value == 2
    assert declared.doc_string == "after add"
    shape = out.graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "batch" and shape.dim[0].denotation == "DATA_BATCH"
    out.graph.value_info[0].CopyFrom(model.proto.graph.value_info[0])
    out.graph.input[0].CopyFrom(model.proto.graph.input[0])
    assert same_bytes(out, model.proto), "something else changed"


def test_unknown_sizes_stay_as_they_were_written() -> None:
    """Some exporters write -1 for a size that is not known."""
    model = load(parser.parse_model(CONV))
    model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    graph = import_graph(model)
    assert graph.inputs[0].shape == (None, 2, 8, 8)
    graph.inputs[0].shape = (None, 2, 8, 9)
    dims = export_model(graph, model.proto).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [-1, 2, 8, 9]


def test_constant_nodes_keep_their_form() -> None:
    text = CONV.replace("Transpose<perm = [0, 1, 2, 3]> (c)", "Reshape(c, k)")
    text = text.replace("y = Mul(t, s)", "f = Constant<value = float[2,1] {1, 2}> () y = Mul(t, s)")
    text = text.replace("<ir_version: 8", "<ir_version: 3")

    def edit(graph: gs.Graph) -> None:
        graph.nodes[1].inputs[1].values = np.array([0, 0, -1, 8])
        graph.nodes[2].inputs[1] = gs.Constant("new", np.ones((3, 1, 1), np.float32))

    _, after = _changed(edit, text)
    assert [n.op_type for n in after.graph.node] == [
        "Constant",  # before IR version 4 a new initializer would have to be an input
        "Conv",
        "Constant",
        "Reshape",
        "Constant",
        "Mul",
    ]
    assert list(after.graph.node[2].attribute[0].ints) == [0, 0, -1, 8]


def test_constant_nodes_move_before_consumers_that_moved() -> None:
    def edit(graph: gs.Graph) -> None:
        k = next(t for t in known if t.name == "k")
        first = gs.Node("Identity", inputs=[k], outputs=[gs.Variable("early")])
        graph.nodes.insert(0, first)

    text = CONV.replace("y = Mul(t, s)", "u = Identity(k) y = Mul(t, s)")
    model = load(parser.parse_model(text))
    graph = import_graph(model)
    known = list(graph.tensors().values())
    edit(graph)
    out = export_model(graph, model.proto)
    assert [n.op_type for n in out.graph.node][:3] == ["Constant", "Identity", "Conv"]
    onnx.checker.check_model(out)


def test_initializers_that_are_inputs_follow_their_weight() -> None:
    model = parser.parse_model(CONV.replace("<ir_version: 8", "<ir_version: 3"))
    for t in model.graph.initializer:
        value = helper.make_tensor_value_info(t.name, t.data_type, t.dims, f"about {t.name}")
        model.graph.input.append(value)
    assert round_trip(model)
    loaded = load(model)
    graph = import_graph(loaded)
    assert [t.name for t in graph.inputs] == ["x"]
    graph.nodes[0].inputs[2].values = np.zeros(1, np.float32)
    graph.nodes[2].inputs[1] = gs.Constant("new", np.ones((3, 1, 1), np.float32))
    out = export_model(graph, loaded.proto)
    assert _names(out.graph.input) == ["x", "w", "b", "orphan"]
    assert out.graph.input[2].type.tensor_type.shape.dim[0].dim_value == 1
    assert out.graph.input[2].doc_string == "about b"


def test_new_constants_of_branches_go_where_they_are_read() -> None:
    model = load(_everything())
    graph = import_graph(model)
    branch = next(n for n in graph.nodes if n.op == "If")
    then, otherwise = branch.attrs["then_branch"], branch.attrs["else_branch"]
    shared = gs.Constant("shared", np.ones(1, np.float32))
    then.nodes[1].inputs[1] = shared
    otherwise.nodes[0].inputs[1] = shared
    then.nodes[0].inputs[1] = gs.Constant("alone", np.ones((4, 4), np.float32))
    out = export_model(graph, model.proto).graph
    inner = {a.name: a.g for n in out.node if n.op_type == "If" for a in n.attribute}
    assert "shared" in _names(out.initializer)
    assert _names(inner["then_branch"].initializer) == ["alone"]
    assert [n.op_type for n in inner["then_branch"].node] == ["MatMul", "Mul"]
    assert not inner["else_branch"].initializer
    assert "w" not in _names(out.initializer)


# -- files


def test_save_and_load(tmp_path: Path) -> None:
    model = _everything()
    path = tmp_path / "out.onnx"
    path.write_text("old")
    assert save_model(Model(model), path) == [path]
    assert same_bytes(load(path).proto, model)
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model with external data: two weights and one in a branch."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x, bool c) => (float[N,64] y) {
            a = MatMul(x, w)
            y = If(c) <then_branch = t () => (float[N,64] u) { u = MatMul(a, v) },
                       else_branch = e () => (float[N,64] z) { z = Add(a, b) }>
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (64, 64)), ("v", (64, 64)), ("b", (64,))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    inner = model.graph.node[1].attribute[0].g
    inner.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "v"))
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, size_threshold=1000, location="m.data")
    return folder / "m.onnx"


def _arrays(path: Path) -> list[np.ndarray[Any, Any]]:
    proto = onnx.load(path)
    tensors = [*proto.graph.initializer, *proto.graph.node[1].attribute[0].g.initializer]
    return [numpy_helper.to_array(t) for t in tensors]


def test_external_data_is_written_anew(large: Path, tmp_path: Path) -> None:
    model = load(large)
    graph = import_graph(model)
    w = graph.nodes[0].inputs[1]
    w.values = w.values[:, ::-1].copy()
    out = tmp_path / "out.onnx"
    written = save_model(model.beside(export_model(graph, model.proto)), out)
    assert written == [out, tmp_path / "out.onnx.data"]
    assert sorted(os.listdir(tmp_path)) == ["in", "out.onnx", "out.onnx.data"]
    assert load(out).has_external_data
    want = _arrays(large)
    want[0] = want[0][:, ::-1]
    for a, b in zip(_arrays(out), want, strict=True):
        np.testing.assert_array_equal(a, b)
    onnx.checker.check_model(out, full_check=True)
    assert onnx.load(out, load_external_data=False).graph.initializer[2].HasField("raw_data")


def test_external_data_of_the_original_is_never_overwritten(large: Path) -> None:
    before = large.with_name("m.data").read_bytes()
    model = load(large)
    large.with_name("m.data").rename(large.with_name("out.onnx.data"))
    for tensor in (
        *model.proto.graph.initializer,
        *model.proto.graph.node[1].attribute[0].g.initializer,
    ):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "out.onnx.data"
    written = save_model(model, large.with_name("out.onnx"))
    assert written[1].name == "out.onnx.1.data"
    assert large.with_name("out.onnx.data").read_bytes() == before


def test_a_model_that_protobuf_cannot_hold_goes_apart(tmp_path: Path, large: Path) -> None:
    inline = onnx.load(large)
    out = tmp_path / "out.onnx"
    assert len(save_model(Model(inline), out, max_proto_bytes=10_000)) == 2
    for a, b in zip(_arrays(out), _arrays(large), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("place", [".", "file/out.onnx", "n" * 300])
def test_places_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="Cannot write"):
        save_model(Model(parser.parse_model(CONV)), tmp_path / place)
    assert os.listdir(tmp_path) == ["file"]


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadInputError, match="no plain file"):
        save_model(Model(parser.parse_model(CONV)), pipe)
    assert pipe.is_fifo()


def test_a_failure_leaves_the_old_file(large: Path, tmp_path: Path) -> None:
    model = load(large)
    large.with_name("m.data").write_bytes(b"short")
    out = tmp_path / "out.onnx"
    out.write_text("old")
    with pytest.raises(BadInputError, match="too short"):
        save_model(model, out)
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in", "out.onnx"]


def test_node_proto_with_everything_is_real() -> None:
    """The big model is one that onnx accepts, so the round trip means something."""
    nodes: list[NodeProto] = list(_everything().graph.node)
    assert [n.op_type for n in nodes].count("Constant") == 3
