"""An independent second opinion on a pruned model: it reads the plan's members and nothing else of onnxprune's analysis.

    model = net('''g (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[16,3,3,3] w, float[4,16,1,1] v> {
        a = Conv<pads=[1,1,1,1]>(x, w)
        y = Conv(a, v)
    }''')
    check(model, units=[16])

`net` fills every declared tensor that no node computes with random weights. `check` asserts how many units are found (reach), prunes
at several ratios with random importance, and compares the result with the original in which every activation of the plan's
members is forced to zero where the plan says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune import Budget
from onnxprune.cut.plan import Member

TOLERANCE = 1e-4  # of the output's own scale: float32 sums in another order
HIGH = 5  # integer feeds (token ids) lie below
Array = np.ndarray[Any, Any]
Unit = int | tuple[int, int]


def net(
    text: str, opset: int = 17, seed: int = 0, constants: dict[str, Array] | None = None, domains: str = ""
) -> ModelProto:
    """A model from parser text, without its header; `constants` gives values where random ones will not do."""
    ir = 8 if opset < 18 else 10
    model: ModelProto = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\n{text}')
    rng = np.random.default_rng(seed)
    values = dict(constants or {})
    for function in model.functions:
        assert not function.attribute_proto
    for graph in graphs(model.graph):
        made = (
            {o for n in graph.node for o in n.output}
            | {t.name for t in graph.initializer}
            | {v.name for v in graph.input}
        )
        declared = [v for v in graph.value_info if v.name not in made]
        for info in declared:
            array = values.pop(info.name, None)
            if array is None:
                array = weight(info, rng)
            graph.initializer.append(numpy_helper.from_array(array, info.name))
            graph.value_info.remove(info)
    for name, array in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def weight(info: onnx.ValueInfoProto, rng: np.random.Generator) -> Array:
    """Random values that keep activations of the order of one; positive where the name says `var`."""
    kind = info.type.tensor_type
    shape = [d.dim_value for d in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(-20 if np.dtype(dtype).kind == "i" else 0, 20, shape).astype(dtype)
    array = rng.standard_normal(shape)
    if len(shape) > 1:
        array /= np.sqrt(max(1, np.prod(shape[1:]) if len(shape) > 2 else shape[0]))
    if "var" in info.name:
        array = np.abs(array) + 0.5
    return array.astype(dtype)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all below it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def session(model: ModelProto, optimized: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model: ModelProto, seed: int, sizes: Sequence[int] = (2, 3, 5, 7)) -> dict[str, Array]:
    """Random inputs; each dynamic dimension gets the next of `sizes`."""
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    named: dict[str, int] = {}
    result = {}
    for info in model.graph.input:
        if info.name in constants:
            continue
        kind = info.type.tensor_type
        shape = []
        for dim in kind.shape.dim:
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
            else:
                key = dim.dim_param or f"?{len(named)}"
                shape.append(named.setdefault(key, sizes[len(named) % len(sizes)]))
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if dtype.kind == "b":
            result[info.name] = np.asarray(rng.random(shape) < 0.5)
        elif dtype.kind in "iu":
            result[info.name] = rng.integers(0, HIGH, shape).astype(dtype)
        else:
            result[info.name] = rng.standard_normal(shape).astype(dtype)
    return result


def masked(model: ModelProto, plan: onnxprune.Plan, example: dict[str, Array]) -> ModelProto:
    """The original with every activation member of the plan forced to zero at its removed positions."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(4, model.ir_version)  # masks need not be inputs
    opset = next(o.version for o in model.opset_import if o.domain == "")
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    for group in plan.groups:
        for member in group.members:
            gone[member.tensor, member.axis].update(member.removed)
    everything = {o for g in graphs(model.graph) for n in g.node for o in n.output if n.op_type != "Constant"}
    shapes = typed(model, {t for t, _ in gone} & everything, example)
    for graph in graphs(copy.graph):
        outputs = {o.name for o in graph.output}
        made = {o for n in graph.node for o in n.output if n.op_type != "Constant"}
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            for k, name in enumerate(node.output):
                cuts = [(axis, sorted(where)) for (tensor, axis), where in gone.items() if tensor == name and where]
                if name not in made or not cuts or (graph is copy.graph and name in outputs):
                    continue
                node.output[k] = raw = f"{name}//raw"
                for j, (axis, where) in enumerate(cuts):
                    mask_name, out = f"{name}//mask{j}", name if j == len(cuts) - 1 else f"{name}//{j}"
                    shape, dtype = shapes[name]
                    mask = np.ones([n if a == axis else 1 for a, n in enumerate(shape)], bool)
                    np.moveaxis(mask, axis, 0)[where] = False
                    graph.initializer.append(numpy_helper.from_array(mask, mask_name))
                    graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype), f"{mask_name}//zero"))
                    if np.dtype(dtype).kind == "b":
                        nodes.append(helper.make_node("And", [mask_name, raw], [out]))
                    elif opset < 9:
                        graph.initializer[-2].CopyFrom(numpy_helper.from_array(mask.astype(dtype), mask_name))
                        nodes.append(helper.make_node("Mul", [mask_name, raw], [out]))
                    else:
                        nodes.append(helper.make_node("Where", [mask_name, raw, f"{mask_name}//zero"], [out]))
                    raw = out
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
    zero_inside(copy, plan)
    return copy


INSIDE = {"LSTM": 1, "GRU": 1, "RNN": 1, "MoE": 2}  # the axis of the weights whose zeros silence what lives inside


def zero_inside(model: ModelProto, plan: onnxprune.Plan) -> None:
    """A recurrence hands its hidden state on inside the node, experts their inner positions, where no mask reaches them.

    The weights that compute or read them are zeroed instead.
    """
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in INSIDE:
            continue
        raw = {o.removesuffix("//raw") for o in node.output}
        for i, name in enumerate(node.input):
            cuts = [
                m
                for g in plan.groups
                for m in g.members
                if m.node
                and m.node.rpartition(":")[0] in raw
                and m.node.rpartition(":")[2] == str(i)
                and m.axis == INSIDE[node.op_type]
            ]
            if cuts and name in values:
                array = values[name].copy()
                for m in cuts:
                    array[removed(m, array.shape)] = 0
                node.input[i] = f"{node.output[0]}//zeroed{i}"
                model.graph.initializer.append(numpy_helper.from_array(array, node.input[i]))


def removed(member: Member, shape: Sequence[int]) -> Any:
    """The index of what a plan's member says that a constant loses."""
    where = [np.arange(n) for n in shape]
    where[member.axis] = np.array(member.removed)
    for axis, positions in member.at:
        where[axis] = np.array(positions)
    return np.ix_(*where)


def typed(model: ModelProto, names: set[str], example: dict[str, Array]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and types of activations, by running the model (those in subgraphs: by shape inference)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    top = names & {o for n in model.graph.node for o in n.output}
    have = {o.name for o in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(top - have))
    values = session(copy).run(sorted(top), example) if top else []
    found = {name: (value.shape, value.dtype) for name, value in zip(sorted(top), values, strict=True)}
    if names - top:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        known = (v for g in graphs(inferred.graph) for v in (*g.value_info, *g.output))
        for info in (v for v in known if v.type.tensor_type.elem_type):
            shape = tuple(d.dim_value or 1 for d in info.type.tensor_type.shape.dim)
            found.setdefault(info.name, (shape, helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)))
    return found


def deviation(reference: Sequence[Array], result: Sequence[Array]) -> float:
    """Largest difference relative to the scale of each output."""
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype.kind not in "f" or not a.size:
            assert np.array_equal(a, b)
            continue
        assert np.isfinite(a).all(), "the case itself is not finite"
        x, y = a.astype(np.float64), b.astype(np.float64)
        worst = max(worst, float(np.abs(x - y).max() / (np.abs(x).max() + 1e-30)))
    return worst


def same_interface(a: ModelProto, b: ModelProto) -> None:
    for what in ("input", "output"):
        left, right = ([v.SerializeToString(deterministic=True) for v in getattr(m.graph, what)] for m in (a, b))
        assert left == right, f"the {what}s changed"
    for field in ("ir_version", "producer_name", "doc_string", "opset_import", "metadata_props"):
        assert getattr(a, field) == getattr(b, field), field


def reach(model: ModelProto, inexact: bool = False) -> tuple[list[Unit], list[Unit]]:
    """Units of every group that can lose some, and those of rows: `n` if all but one may go, `(units, removable)` if not."""
    found = onnxprune.inspect(model, include_inexact=inexact)["groups"]
    sizes: tuple[list[Unit], list[Unit]] = ([], [])
    for g in found:
        if g["removable"]:
            size = g["units"] if g["removable"] == g["units"] - 1 else (g["units"], g["removable"])
            sizes[g["kind"] == "rows"].append(size)
    key = lambda u: u if isinstance(u, tuple) else (u, u - 1)  # noqa: E731
    return sorted(sizes[0], key=key, reverse=True), sorted(sizes[1], key=key, reverse=True)


def pins(model: ModelProto) -> str:
    """All reasons why something stays."""
    return "\n".join(p["reason"] for g in onnxprune.inspect(model)["groups"] for p in g["pins"])


def prune(model: ModelProto, ratio: float, seed: int = 0, **options: Any) -> onnxprune.PruneResult:
    options = {"round_to": 1, "importance": "random", "recover": "none", "benchmark": False} | options
    return onnxprune.prune(model, Budget("ratio", ratio), seed=seed, **options)


def compare(
    model: ModelProto,
    result: onnxprune.PruneResult,
    tolerance: float = TOLERANCE,
    sizes: Sequence[Sequence[int]] = ((2, 3, 5, 7), (1, 4, 2, 6)),
) -> None:
    """The result is a valid model with the same interface and equals the masked original, at two sizes of dynamic axes."""
    onnx.checker.check_model(result.model, full_check=True)
    same_interface(model, result.model)
    example = feeds(model, 0, sizes[0])
    reference = session(masked(model, result.plan, example))
    for pruned in (session(result.model), session(result.model, optimized=True)):
        for seed, size in enumerate(sizes):
            given = feeds(model, seed, size)
            worst = deviation(reference.run(None, given), pruned.run(None, given))
            assert worst <= tolerance, f"differs from the masked original by {worst:.2g}"


def check(
    model: ModelProto,
    units: list[Unit] | None = None,
    rows: list[Unit] | str | None = None,
    inexact: bool = False,
    ratios: Sequence[float] = (0.3, 0.5, 0.8),
    tolerance: float = TOLERANCE,
) -> Any:
    """Assert reach and oracle; the last result, or None where nothing can be removed (asserted, too)."""
    onnx.checker.check_model(model, full_check=True)
    found = reach(model, inexact)
    if rows == "any":
        rows = found[1]
    assert found == (units or [], rows or []), f"found {found}, expected {(units, rows)}; pins:\n{pins(model)}"
    if not units and not rows:
        with pytest.raises(onnxprune.NothingPrunableError, match=r"Nothing can be removed: \S+"):
            prune(model, 0.5)
        return None
    for seed, ratio in enumerate(ratios):
        result = prune(model, ratio, seed, include_inexact=inexact)
        assert any(g.removed for g in result.plan.groups), f"nothing was removed at {ratio}"
        compare(model, result, tolerance)
    return result


def dims(model: ModelProto, name: str) -> list[int]:
    """Shape of an initializer."""
    return list(next(t.dims for g in graphs(model.graph) for t in g.initializer if t.name == name))


def node(model: ModelProto, op: str, k: int = 0) -> NodeProto:
    """The k-th node of a type."""
    return [n for g in graphs(model.graph) for n in g.node if n.op_type == op][k]


def attribute(of: NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(a) for a in of.attribute if a.name == name)


def initializer(name: str, array: Array) -> TensorProto:
    return numpy_helper.from_array(array, name)
