"""Inputs of another batch size, to time a model with.

Which axis is the batch is read from the declarations: axes whose name says "batch", such as `[T, batch, F]`; where none does, the first
axis of each input whose size is dynamic, and other axes of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.runtime.inputs import declared_batch, graph_inputs


def batch_axes(inputs: Sequence[ValueInfoProto]) -> dict[str, list[int]]:
    """By input, its axes whose size is the batch's; without those whose batch is fixed."""
    names = {d.dim_param for v in inputs for d in _dims(v) if "batch" in d.dim_param.lower()}
    firsts = [v for v in inputs if not names and _is_open(v)]
    names |= {_dims(v)[0].dim_param for v in firsts if _dims(v)} - {""}
    found = {v.name: [k for k, d in enumerate(_dims(v)) if d.dim_param in names] for v in inputs}
    for value in firsts:
        found[value.name] = sorted({0, *found[value.name]})
    return {name: axes for name, axes in found.items() if axes}


def check_batch(proto: ModelProto, batch: int | None) -> None:
    """Raise `BadInputError` where the model takes no batch of this size, as far as its declarations say."""
    inputs = graph_inputs(proto)
    if batch is None or batch_axes(inputs):
        return
    fixed = next((v for v in inputs if declared_batch(v) not in (0, batch)), None)
    if fixed is not None:
        raise BadInputError(
            f"--batch {batch}: the first dimension of input '{fixed.name}' is fixed at {declared_batch(fixed)}; "
            "export the model with a dynamic one, or leave out --batch."
        )


def with_batch(proto: ModelProto, feeds: Feeds, batch: int | None) -> Feeds:
    """The inputs with so many samples: the same ones again and again, or the first of them. Raises as `check_batch`."""
    if batch is None:
        return feeds
    check_batch(proto, batch)
    found = dict(feeds)
    for name, axes in batch_axes(graph_inputs(proto)).items():
        for axis in axes:
            array = found[name]
            if axis < array.ndim and array.shape[axis]:
                found[name] = np.ascontiguousarray(np.take(array, np.arange(batch) % array.shape[axis], axis=axis))
    return found


def samples_in(proto: ModelProto, feeds: Feeds) -> int:
    """Samples of one run: the size of the batch's axes; where it is fixed, the first size that an input and an output share, else 1."""
    inputs = graph_inputs(proto)
    for name, axes in batch_axes(inputs).items():
        if axes[0] < feeds[name].ndim:
            return int(feeds[name].shape[axes[0]])
    sizes = {declared_batch(v) for v in inputs if len(_dims(v)) > 1} & {declared_batch(v) for v in proto.graph.output}
    return max(sizes - {0}, default=1)


def _dims(value: ValueInfoProto) -> Sequence[TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _is_open(value: ValueInfoProto) -> bool:
    """Is the size of the first axis dynamic? Also where the rank is not declared."""
    tensor = value.type.tensor_type
    return value.type.HasField("tensor_type") and (
        not tensor.HasField("shape") or (len(tensor.shape.dim) > 0 and not declared_batch(value))
    )
