"""What a graph declares about its tensors (inputs, outputs, value_info), read and patched in place.

A tensor may be declared several times, each time with less or more; the graph has one tensor object with the sum. At
export a declaration is touched only where that object's type or shape is no longer the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, TensorShapeProto, TypeProto, ValueInfoProto, helper

from onnxprune.model.tensors import numpy_dtype

Dim = int | str | None


@dataclass(frozen=True)
class Declared:
    """dtype and shape are None where unknown; `kind` is the field of TypeProto that is set."""

    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None
    kind: str


def declarations(graph: GraphProto) -> dict[str, Declared]:
    """All declared tensors of one graph: inputs first, then outputs, then value_info, each filling gaps."""
    known: dict[str, Declared] = {}
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            new = read(value)
            old = known.get(value.name)
            if old is not None:
                new = Declared(
                    new.dtype if old.dtype is None else old.dtype,
                    new.shape if old.shape is None else old.shape,
                    old.kind,
                )
            known[value.name] = new
    return known


def read(value: ValueInfoProto) -> Declared:
    kind = value.type.WhichOneof("value") or "tensor_type"
    inner = value.type
    for _ in range(32):  # sequence and optional wrap the element type; `load` limits the depth
        wrapper = inner.WhichOneof("value")
        if wrapper not in ("sequence_type", "optional_type"):
            break
        inner = getattr(inner, wrapper).elem_type
    leaf = inner.WhichOneof("value")
    dtype = None
    if leaf in ("tensor_type", "sparse_tensor_type"):
        element = getattr(inner, leaf).elem_type
        dtype = numpy_dtype(element) if element else None
    shape = None
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(value.type, kind)
        if tensor.HasField("shape"):
            shape = tuple(_dim(d) for d in tensor.shape.dim)
    return Declared(dtype, shape, kind)


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    which = dim.WhichOneof("value")
    if which == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None if which else None


def of_tensor(tensor: Any) -> Declared:
    """What a gs tensor says about itself now."""
    shape = tensor.shape
    dtype = tensor.dtype
    if isinstance(dtype, int):
        dtype = numpy_dtype(dtype) if dtype else None
    return Declared(
        np.dtype(dtype) if dtype is not None else None,
        None if shape is None else tuple(_plain(d) for d in shape),
        getattr(tensor, "type", "tensor_type"),
    )


def _plain(dim: Any) -> Dim:
    if isinstance(dim, str) or dim is None:
        return dim or None
    return int(dim) if dim >= 0 else None


def patch(value: ValueInfoProto, old: Declared | None, new: Declared) -> None:
    """Make a declaration say `new` where it differs from `old`; denotations of kept dims stay."""
    kind = value.type.WhichOneof("value")
    if old is not None and new.kind != old.kind:
        value.type.Clear()
        kind = None
    if kind is None:
        kind = new.kind
        if kind not in ("tensor_type", "sparse_tensor_type"):
            return
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return
    tensor = getattr(value.type, kind)
    if new.dtype is not None and (old is None or new.dtype != old.dtype):
        tensor.elem_type = helper.np_dtype_to_tensor_dtype(new.dtype)
    if old is None or new.shape != old.shape:
        if new.shape is None:
            tensor.ClearField("shape")
        else:
            _patch_shape(tensor, new.shape)


def _patch_shape(tensor: TypeProto.Tensor, shape: Sequence[Dim]) -> None:
    if not tensor.HasField("shape") or len(tensor.shape.dim) != len(shape):
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for _ in shape:
            tensor.shape.dim.add()
    for dim, size in zip(tensor.shape.dim, shape, strict=True):
        if _dim(dim) == size:
            continue
        if isinstance(size, str):
            dim.dim_param = size
        elif size is not None:
            dim.dim_value = size
        else:
            dim.ClearField("dim_value")
            dim.ClearField("dim_param")


def new_value(name: str, declared: Declared) -> ValueInfoProto:
    value = ValueInfoProto(name=name)
    patch(value, None, declared)
    return value
