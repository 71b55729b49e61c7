"""Node attributes as Python values, and back without changing what was not changed.

`decode` gives int, float, str, lists of them, a Constant for a tensor, and the proto itself for the rare rest (type
protos, sparse tensors). `write` re-uses the original proto where its decoded value still equals the current
one, so that doc strings, exact types, empty lists and bit patterns survive; a new value keeps the original's type, or
takes the one that the operator's schema asks for.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto

from onnxprune.model.constants import Constant, from_tensor, write_tensor
from onnxprune.model.schema import Kind

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
INT, FLOAT = int(AttributeProto.INT), int(AttributeProto.FLOAT)
_NATURAL: list[tuple[tuple[type, ...], Kind]] = [
    ((bool, int, np.integer, np.bool_), INT),
    ((float, np.floating), FLOAT),
    ((str, bytes), AttributeProto.STRING),
    ((gs.Constant,), AttributeProto.TENSOR),
    ((onnx.SparseTensorProto,), AttributeProto.SPARSE_TENSOR),
    ((onnx.TypeProto,), AttributeProto.TYPE_PROTO),
]
_LIST_OF: dict[Kind, Kind] = {
    AttributeProto.INT: AttributeProto.INTS,
    AttributeProto.FLOAT: AttributeProto.FLOATS,
    AttributeProto.STRING: AttributeProto.STRINGS,
    AttributeProto.TENSOR: AttributeProto.TENSORS,
    AttributeProto.SPARSE_TENSOR: AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTO: AttributeProto.TYPE_PROTOS,
}
_SCALARS = (AttributeProto.FLOAT, AttributeProto.INT)
_LISTS = (AttributeProto.FLOATS, AttributeProto.INTS)


def decode(attribute: AttributeProto, folder: Path | None) -> Any:
    """The value of an attribute that is not a graph (those need their scope: see graphio)."""
    kind = attribute.type
    if attribute.ref_attr_name or kind not in _FIELDS:
        return attribute
    value = getattr(attribute, _FIELDS[kind])
    if kind in _SCALARS:
        return value
    if kind in _LISTS:
        return list(value)
    if kind == AttributeProto.STRING:
        return _text(value)
    if kind == AttributeProto.STRINGS:
        return [_text(v) for v in value]
    if kind == AttributeProto.TENSOR:
        return from_tensor(value, folder)
    if kind == AttributeProto.TENSORS:
        return [from_tensor(v, folder) for v in value]
    return value if kind in (AttributeProto.SPARSE_TENSOR, AttributeProto.TYPE_PROTO) else list(value)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def is_unchanged(attribute: AttributeProto, value: Any) -> bool:
    """Whether a value still is what the attribute's proto says."""
    kind = attribute.type
    if attribute.ref_attr_name or kind not in _FIELDS:
        return value is attribute
    now = getattr(attribute, _FIELDS[kind])
    if kind in _SCALARS:
        return type(value) in (int, float) and _same(value, now)
    if kind in _LISTS:
        return isinstance(value, list | tuple) and len(value) == len(now) and all(map(_same, value, now))
    if kind == AttributeProto.STRING:
        return bool(value == _text(now))
    if kind == AttributeProto.STRINGS:
        return isinstance(value, list | tuple) and list(value) == [_text(v) for v in now]
    if kind == AttributeProto.TENSOR:
        return _is_stored(value, now)
    if kind == AttributeProto.TENSORS:
        return len(value) == len(now) and all(map(_is_stored, value, now))
    if kind in (AttributeProto.SPARSE_TENSOR, AttributeProto.TYPE_PROTO):
        return bool(value == now)
    return list(value) == list(now)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def _is_stored(value: Any, tensor: TensorProto) -> bool:
    return (
        isinstance(value, Constant)
        and value.is_unchanged
        and value.origin is tensor
        and bool(value.name == getattr(tensor, "name", None))
    )


def write(
    target: AttributeProto,
    name: str,
    value: Any,
    original: AttributeProto | None,
    kind: Kind | None,
) -> None:
    """Fill `target` with a new value; `kind` is the type wanted (the original's or the schema's).

    Raises: TypeError for a value that no attribute type holds.
    """
    if isinstance(value, AttributeProto):
        target.CopyFrom(value)
        target.name = name
        return
    target.name = name
    if original is not None and original.HasField("doc_string"):
        target.doc_string = original.doc_string
    if isinstance(value, np.ndarray):
        value = value.tolist()
    is_fit = kind in _FIELDS and _fits(value, kind)
    target.type = kind if is_fit and kind is not None else _kind_of(value)
    field = _FIELDS[target.type]
    if target.type == AttributeProto.TENSOR:
        origin = original.t if original is not None and original.HasField("t") else None
        write_tensor(target.t, value, origin, value.name)
    elif target.type == AttributeProto.TENSORS:
        for tensor in value:
            write_tensor(target.tensors.add(), tensor, getattr(tensor, "origin", None), tensor.name)
    elif target.type == AttributeProto.INT:
        target.i = int(value)
    elif target.type == AttributeProto.FLOAT:
        target.f = float(value)
    elif target.type == AttributeProto.STRING:
        target.s = _bytes(value)
    elif target.type == AttributeProto.INTS:
        target.ints.extend(int(v) for v in value)
    elif target.type == AttributeProto.FLOATS:
        target.floats.extend(float(v) for v in value)
    elif target.type == AttributeProto.STRINGS:
        target.strings.extend(_bytes(v) for v in value)
    elif isinstance(value, onnx.SparseTensorProto | onnx.TypeProto):
        getattr(target, field).CopyFrom(value)
    else:
        getattr(target, field).extend(value)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _fits(value: Any, kind: Kind | None) -> bool:
    """Whether a value can be written as `kind` (an int where a float is wanted, any empty list)."""
    if isinstance(value, list | tuple):
        if not value:
            return kind in (*_LISTS, AttributeProto.STRINGS, AttributeProto.TENSORS)
        natural = _kind_of(value)
        return natural == kind or (natural, kind) == (AttributeProto.INTS, AttributeProto.FLOATS)
    natural = _kind_of(value)
    return natural == kind or (natural, kind) == (AttributeProto.INT, AttributeProto.FLOAT)


def _kind_of(value: Any) -> Kind:
    """The attribute type that a Python value has by itself."""
    if isinstance(value, list | tuple):
        kinds = {_kind_of(v) for v in value} or {INT}
        if kinds == {INT, FLOAT}:
            kinds = {FLOAT}
        if len(kinds) == 1 and (kind := kinds.pop()) in _LIST_OF:
            return _LIST_OF[kind]
    else:
        for types, kind in _NATURAL:
            if isinstance(value, types):
                return kind
    raise TypeError(f"no ONNX attribute holds a {type(value).__name__}")
