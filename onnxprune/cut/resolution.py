"""A smaller picture inside the model: its input is resized before anything reads it, and every layer has fewer positions.

    x [N, 3, 224, 224] -> Resize -> [N, 3, 192, 192] -> the model as it was, with 73 % of its multiply-accumulates

The model takes the same pictures as before. Nothing but positions is fewer, so it has to be a model that takes any size: convolutions
up to a pooling over all positions. `choose/resolutions.py` finds out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, helper, numpy_helper

from onnxprune.cut.bypass import Bypass
from onnxprune.errors import BadInputError, quoted
from onnxprune.model.branches import opset_of, rename, subgraphs

OPSET = 11  # the first whose Resize says where pixels lie
OPTIONAL = 13  # from this one on Resize may go without a region
CHANNELS = (1, 3, 4)  # of a picture


@dataclass(frozen=True)
class Resolution:
    """A picture input is resized before anything reads it.

    input: its name.
    axes: those of its height and its width.
    size: pixels along these, inside the model.
    """

    input: str
    axes: tuple[int, int]
    size: tuple[int, int]


Mark: TypeAlias = tuple[tuple[Bypass, ...], Resolution | None]
"""What was done to a model before units are removed: tensors that were bypassed, and at which resolution it works."""


@dataclass(frozen=True)
class Picture:
    """An input that holds pictures of one size. axes, size: of height and width."""

    name: str
    axes: tuple[int, int]
    size: tuple[int, int]


def pictures(proto: ModelProto) -> list[Picture]:
    """The inputs that hold pictures of a fixed size, as floats, with channels first or last."""
    constants = {t.name for t in proto.graph.initializer}
    found = []
    for value in proto.graph.input:
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if value.name in constants or kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            continue
        if len(dims) != 4:
            continue
        axes = (2, 3) if dims[1] in CHANNELS else (1, 2) if dims[3] in CHANNELS else None
        if axes is not None and all(dims[a] for a in axes):
            found.append(Picture(value.name, axes, (dims[axes[0]], dims[axes[1]])))
    return found


def resized(proto: ModelProto, resolution: Resolution) -> ModelProto:
    """A copy whose input is resized before anything reads it; what was said of the sizes inside is left out."""
    picture = next(p for p in pictures(proto) if p.name == resolution.input)
    copy = ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    name = _free(graph, f"{resolution.input}__resized")
    scales = np.ones(4, np.float32)
    for axis, before, after in zip(resolution.axes, picture.size, resolution.size, strict=True):
        scales[axis] = _scale(before, after)
    region = ""
    if opset_of(proto) < OPTIONAL:
        region = f"{name}_region"
        graph.initializer.append(numpy_helper.from_array(np.empty(0, np.float32), region))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
    for node in graph.node:
        rename(node, lambda read: name if read == resolution.input else read)
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    node = helper.make_node("Resize", [resolution.input, region, f"{name}_scales"], [name], name=name, **how)
    graph.node.insert(0, node)
    del graph.value_info[:]
    return copy


def with_coarse(proto: ModelProto, resolution: Resolution) -> ModelProto | None:
    """One model that gives the outputs of the original, with all tensors inside as they are at a resolution, under their names.

    None where nodes have bodies, whose names are not those of one graph.
    """
    if any(True for node in proto.graph.node for _ in subgraphs(node)):
        return None
    made = resized(proto, resolution)
    outputs = {o.name for o in proto.graph.output}
    for node in made.graph.node:
        rename(node, lambda name: f"{name}__coarse" if name in outputs else name)
    fine = ModelProto()
    fine.CopyFrom(proto)
    inner = {o for node in proto.graph.node for o in node.output if o} - outputs
    for node in fine.graph.node:
        rename(node, lambda name: f"{name}__fine" if name in inner else name)
        node.name = f"{node.name}__fine" if node.name else ""
    made.graph.node.extend(fine.graph.node)
    return made


def checked_resolution(proto: ModelProto, resolution: Resolution, what: str) -> None:
    """Raise `BadInputError` where a resolution from outside is none of this model: nothing in a plan is trusted."""
    picture = next((p for p in pictures(proto) if p.name == resolution.input), None)
    reason = None
    if picture is None or opset_of(proto) < OPSET:
        reason = "which is no picture of a fixed size that could be"
    elif resolution.axes != picture.axes:
        reason = f"along axes {list(resolution.axes)}, where its height and width are {list(picture.axes)}"
    elif not all(1 <= new <= old for new, old in zip(resolution.size, picture.size, strict=True)):
        reason = f"to {list(resolution.size)}, and it has {list(picture.size)}"
    if reason is not None:
        raise BadInputError(f"{what} resizes {quoted(resolution.input)}, {reason}; apply it to its own model.")


def _scale(before: int, after: int) -> np.float32:
    """after / before, such that `before` times it, rounded down, is `after`: in 32-bit floats (ONNX Runtime) and in 64 bits (ONNX)."""
    scale = np.float32(after / before)
    while min(float(np.float32(before) * scale), before * float(scale)) < after:
        scale = np.nextafter(scale, np.float32(2))
    return scale


def _free(graph: GraphProto, name: str) -> str:
    taken = (
        {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer} | {i.name for i in graph.input}
    )
    while any(t.startswith(name) for t in taken):
        name += "_"
    return name
