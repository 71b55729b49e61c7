"""Axes of graph inputs and outputs that a removal made shorter (`--free`), and how the original's values fit them.

    past [2, 4, T, 8] loses positions 1 and 5 of axis 3     Port("past", "input", 3, 8, (1, 5))

Everything that runs a pruned model speaks to it at the *original's* interface: inputs are cut on the way in, and outputs get zeros
where positions have left, which is what these positions are in the masked original. What a model's ports are is told by an entry of its
metadata while it is in memory (`marked`); it is taken out before a file is written (`unmarked`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from onnxprune.model.typed_json import plain, typed

KEY = "onnxprune.interface"
Array = NDArray[Any]


@dataclass(frozen=True)
class Port:
    """One axis of a graph input or output that gets shorter.

    tensor: the name of the input or output.
    direction: which of the two it is.
    axis: the axis that gets shorter, from 0.
    before: its size in the original.
    removed: the positions that leave it, from 0, ascending.
    """

    tensor: str
    direction: Literal["input", "output"]
    axis: int
    before: int
    removed: tuple[int, ...]

    @property
    def after(self) -> int:
        """The size in the pruned model."""
        return self.before - len(self.removed)

    def cut(self, array: Array) -> Array:
        """A value of the original's without the positions that left; one that has its new size already stays."""
        if array.ndim <= self.axis or array.shape[self.axis] != self.before:
            return array
        return np.delete(array, self.removed, axis=self.axis)

    def filled(self, array: Array) -> Array:
        """A value of the pruned model's at the original's size, with zeros where positions left."""
        if array.ndim <= self.axis or array.shape[self.axis] != self.after:
            return array
        sizes = [self.before if a == self.axis else n for a, n in enumerate(array.shape)]
        kept = np.delete(np.arange(self.before), self.removed)
        whole = np.zeros(sizes, array.dtype)
        whole[(slice(None),) * self.axis + (kept,)] = array
        return whole


Interface = tuple[Port, ...]


def cut_feeds(ports: Interface, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of the original, as the pruned model takes them."""
    result = dict(feeds)
    for port in ports:
        if port.direction == "input" and port.tensor in result:
            result[port.tensor] = port.cut(result[port.tensor])
    return result


def filled_values(ports: Interface, names: Sequence[str], values: Iterable[Any]) -> list[Any]:
    """What the pruned model gave for these tensors, its outputs as large as the original's."""
    result = dict(zip(names, values, strict=True))
    for port in ports:
        if port.direction == "output" and port.tensor in result:
            result[port.tensor] = port.filled(result[port.tensor])
    return [result[name] for name in names]


def marked(proto: ModelProto, ports: Interface) -> ModelProto:
    """The model, told what its ports are; as its file has it where there are none."""
    copy = unmarked(proto)
    if not ports:
        return copy
    if copy is proto:
        copy = ModelProto()
        copy.CopyFrom(proto)
    copy.metadata_props.add(key=KEY, value=json.dumps(plain(ports)))
    return copy


def interface_of(proto: ModelProto) -> Interface:
    """The ports that `marked` told a model."""
    text = next((p.value for p in proto.metadata_props if p.key == KEY), None)
    return () if text is None else tuple(typed(Port, port, "the interface") for port in json.loads(text))


def unmarked(proto: ModelProto) -> ModelProto:
    """The model as its file has it; itself where it has no ports."""
    if not any(p.key == KEY for p in proto.metadata_props):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    left = [p for p in proto.metadata_props if p.key != KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(left)
    return copy


def declared(value: ValueInfoProto, direction: str, ports: Interface) -> ValueInfoProto:
    """The declaration of an input or output of the original, as the pruned model's is."""
    own = [p for p in ports if p.tensor == value.name and p.direction == direction]
    if not own:
        return value
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    dims = copy.type.tensor_type.shape.dim
    for port in own:
        if port.axis < len(dims):
            dims[port.axis].dim_value = port.after
    return copy


def resized(original: ModelProto, other: ModelProto) -> Interface:
    """Ports by declared sizes alone: where another model's inputs and outputs are smaller than the original's, as if the last positions
    had left. Weights are no inputs, though files of IR version 3 list them there.
    """
    found: list[Port] = []
    weights = {t.name for t in original.graph.initializer} | {t.values.name for t in original.graph.sparse_initializer}
    found += _smaller([v for v in original.graph.input if v.name not in weights], other.graph.input, "input")
    found += _smaller(original.graph.output, other.graph.output, "output")
    return tuple(found)


def _smaller(
    values: Iterable[ValueInfoProto], others: Iterable[ValueInfoProto], direction: Literal["input", "output"]
) -> list[Port]:
    found = []
    theirs = {v.name: v.type.tensor_type.shape.dim for v in others}
    for value in values:
        pairs = zip(value.type.tensor_type.shape.dim, theirs.get(value.name, ()), strict=False)
        for axis, (a, b) in enumerate(pairs):
            if 0 < b.dim_value < a.dim_value:
                gone = tuple(range(b.dim_value, a.dim_value))
                found.append(Port(value.name, direction, axis, a.dim_value, gone))
    return found
