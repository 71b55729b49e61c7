"""One operator in a small model: how many units are found, and does removing half of them equal forcing them to zero?

    check('x [2, 3] -> y', model, units={"MatMul 'h'": 8})

`units` counts per group what may be removed: `(units, removable)` or just `units` where `removable` is one less. Groups in which nothing may
be removed are left out unless named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.analyse.walk import analyse
from onnxprune.choose.allocate import allocate
from onnxprune.choose.budget import Budget
from onnxprune.cut.rewrite import rewrite
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.proof.compare import error
from onnxprune.proof.masked import masked_keys, masked_original
from onnxprune.proof.unsigned import exact_products

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}
TOLERANCE = 1e-4  # of the output's own scale: float32 sums in another order
Node = onnx.NodeProto


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> Node:
    """`node("Conv", "x W B", "y", group=2)`; `_` is a skipped input."""
    names = ["" if n == "_" else n for n in inputs.split()]
    outs = ["" if n == "_" else n for n in outputs.split()]
    return helper.make_node(op, names, outs, name=outs[0], domain=domain, **attributes)


@dataclass(frozen=True)
class Case:
    """A model and what is expected of it. `feeds` replaces random inputs."""

    proto: onnx.ModelProto
    units: dict[str, int]
    inexact: bool = False
    tolerance: float = TOLERANCE


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Float32 constants of a fixed seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model(
    nodes: list[Node],
    inputs: dict[str, list[int | str]],
    outputs: str = "y",
    constants: dict[str, Array] | None = None,
    opset: int = 17,
    types: dict[str, str] | None = None,
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model from nodes, input shapes and constants; the type of an input is float32 unless given in `types`."""
    types = types or {}
    infos = [helper.make_tensor_value_info(n, TYPES[types.get(n, "float32")], s) for n, s in inputs.items()]
    outs = [helper.make_tensor_value_info(n, TYPES[types.get(n, "float32")], None) for n in outputs.split()]
    graph = helper.make_graph(
        nodes, "case", infos, outs, [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    )
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(d, v) for d, v in (domains or {}).items()]]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10 if opset < 24 else 11)
    return _with_output_shapes(proto)


def _with_output_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Declare the shapes that ONNX Runtime infers: `onnx.checker` wants them."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for info, known in zip(proto.graph.output, session.get_outputs(), strict=True):
        info.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
        for size in known.shape:
            dim = info.type.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size:
                dim.dim_param = size
    return proto


def analysed(proto: onnx.ModelProto, inexact: bool = False) -> Analysis:
    loaded = load(proto)
    feeds = runtime.find_feeds(loaded)
    return analyse(loaded, lambda wanted, typed: runtime.Probe(loaded, wanted, typed).observation(feeds), inexact)


def found(analysis: Analysis) -> dict[str, int]:
    """Removable steps per group, plus the one that has to stay; groups that are wholly pinned are left out."""
    result: dict[str, int] = {}
    for group in analysis.groups:
        if group.removable:
            name = f"{group.origin} rows" if group.kind == "rows" else group.origin
            full = group.removable + 1 if group.removable + 1 == group.units else group.removable
            while name in result:
                name += "'"
            result[name] = full
    return result


def oracle(analysis: Analysis, share: float, seed: int, checker: bool = True) -> float:
    """Error of the pruned model against the masked original, removing `share` of every group at random."""
    scores = np.random.default_rng(seed).random(analysis.solution.count)
    removed = allocate(analysis, scores, Budget("ratio", share), 1).removed
    assert removed.any(), "nothing was removed"
    pruned = rewrite(analysis, removed)
    if checker:
        onnx.checker.check_model(pruned)
    keys = masked_keys(analysis, removed)
    types = runtime.types_of(analysis.model, analysis.feeds, keys)
    reference = runtime.Session(
        Model(exact_products(masked_original(analysis, removed, types))), what="the masked original"
    )
    result = runtime.Session(Model(exact_products(pruned)), what="the pruned model")
    worst = 0.0
    for feeds in analysis.feeds:
        a, b = reference.run(feeds), result.run(feeds)
        assert all(np.isfinite(x).all() for x in a if x.dtype.kind == "f"), "the case itself is not finite"
        worst = max(worst, error(a, b))
    return worst


def check(case: Case) -> Analysis:
    """Assert the expected units and, if there are any, the oracle at two shares."""
    analysis = analysed(case.proto, case.inexact)
    assert found(analysis) == case.units, describe(analysis)
    if case.units:
        for seed, share in enumerate((0.3, 0.5, 0.75)):
            assert oracle(analysis, share, seed) <= case.tolerance
    return analysis


def describe(analysis: Analysis) -> str:
    lines = [f"found {found(analysis)}"]
    for group in analysis.groups:
        lines.append(f"{group.id} {group.kind} {group.origin}: {group.removable} of {group.units}, exact={group.exact}")
        lines += [f"    {pin.reason}" for pin in group.pins[:4]]
    return "\n".join(lines)


def why(analysis: Analysis) -> str:
    """All pin reasons, for tests of refusals."""
    return "\n".join(p.reason for g in analysis.groups for p in g.pins)


def dense(
    between: list[Node],
    constants: dict[str, Array] | None = None,
    opset: int = 17,
    width: int = 8,
    out: int | None = None,
    **more: object,
) -> onnx.ModelProto:
    """x [2, 5, 4] -> MatMul 'h' [2, 5, width] -> `between`, which gives g [2, 5, out] -> MatMul 'y'."""
    c = weights(11, W=(4, width), V=(out or width, 3)) | (constants or {})
    nodes = [node("MatMul", "x W", "h"), *between, node("MatMul", "g V", "y")]
    inputs: dict[str, list[int | str]] = {"x": [2, 5, 4]}
    return model(nodes, inputs, constants=c, opset=opset, **more)  # type: ignore[arg-type]


def image(
    between: list[Node],
    constants: dict[str, Array] | None = None,
    opset: int = 17,
    width: int = 8,
    out: int | None = None,
    **more: object,
) -> onnx.ModelProto:
    """x [2, 3, 8, 8] -> Conv 'h' [2, width, 8, 8] -> `between`, which gives g [2, out, ..] -> Conv 'y' 1x1."""
    c = weights(12, W=(width, 3, 3, 3), V=(4, out or width, 1, 1)) | (constants or {})
    nodes = [node("Conv", "x W", "h", pads=[1, 1, 1, 1]), *between, node("Conv", "g V", "y")]
    inputs: dict[str, list[int | str]] = {"x": [2, 3, 8, 8]}
    return model(nodes, inputs, constants=c, opset=opset, **more)  # type: ignore[arg-type]
