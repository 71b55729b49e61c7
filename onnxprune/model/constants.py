"""Constants of a graph: tensors whose values the file holds, and how they are written back.

An initializer, a sparse initializer, a tensor attribute and the output of a `Constant` node all become one thing, a
`Constant` with lazy values. It remembers the proto it came from (`origin`), so that one that nobody touched is written
back as the very bytes that were read, and one with new values keeps its name, documentation and form.
"""

from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxprune.model.tensors import PACKED_BITS, Array, StoredSparseValues, StoredValues, little_endian

Origin: TypeAlias = TensorProto | onnx.SparseTensorProto | NodeProto

# A Constant node's attribute -> (element type, rank) of its value. `value_string(s)` and `sparse_value` stay nodes.
_VALUE_ATTRIBUTES = {
    "value_float": (TensorProto.FLOAT, 0, "f", "float_data"),
    "value_floats": (TensorProto.FLOAT, 1, "floats", "float_data"),
    "value_int": (TensorProto.INT64, 0, "i", "int64_data"),
    "value_ints": (TensorProto.INT64, 1, "ints", "int64_data"),
}

TYPE_NAMES = {"float32": "float", "float64": "double", "object": "string"}  # in ONNX, where numpy has another


class Constant(gs.Constant):  # type: ignore[misc]
    """A gs.Constant that does not keep what it loads and remembers where it came from.

    `values` is read-only; give new values by assignment (`c.values = array`) or make a new gs.Constant.
    origin: the proto in the model that it was imported from; `is_unchanged` while its values are still those.
    """

    def __init__(self, name: str, stored: StoredValues, origin: Origin | None) -> None:
        super().__init__(name, stored)
        self.origin = origin
        self._stored = stored

    @property
    def values(self) -> Array:
        loaded: Array = self._values.load() if isinstance(self._values, LazyValues) else self._values
        return loaded

    @values.setter
    def values(self, values: Array | LazyValues) -> None:
        self._values = values

    @property
    def is_unchanged(self) -> bool:
        return self._values is self._stored

    def copy(self) -> "Constant":
        new = Constant(self.name, self._stored, self.origin)
        new._values = self._values
        return new


def from_tensor(tensor: TensorProto, folder: Path | None) -> Constant:
    return Constant(tensor.name, StoredValues(tensor, folder), tensor)


def from_sparse(sparse: onnx.SparseTensorProto, folder: Path | None) -> Constant:
    return Constant(sparse.values.name, StoredSparseValues(sparse, folder), sparse)


def is_constant(node: NodeProto) -> bool:
    """Whether a node only stands for a tensor, a number or a list of numbers.

    This is the only place outside the operators' rules that knows an operator by name: `Constant` is how some
    exporters write an initializer.
    """
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or node.input:
        return False
    if len(node.attribute) != 1 or len(node.output) != 1 or not node.output[0]:
        return False
    attribute = node.attribute[0]
    if attribute.ref_attr_name:
        return False
    is_tensor = attribute.name == "value" and attribute.type == AttributeProto.TENSOR
    return is_tensor or attribute.name in _VALUE_ATTRIBUTES


def tensor_in(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds as one; it may be changed in place."""
    return node.attribute[0].t if is_constant(node) and node.attribute[0].name == "value" else None


def from_node(node: NodeProto, folder: Path | None) -> Constant:
    """The constant that a node stands for, where `is_constant(node)`."""
    attribute, name = node.attribute[0], node.output[0]
    if attribute.name == "value":
        return Constant(name, StoredValues(attribute.t, folder), node)
    data_type, rank, field, data_field = _VALUE_ATTRIBUTES[attribute.name]
    value = getattr(attribute, field)
    values = list(value) if rank else [value]
    tensor = TensorProto(data_type=data_type, dims=[len(values)] * rank)
    getattr(tensor, data_field).extend(values)
    return Constant(name, StoredValues(tensor, folder), node)


def write_tensor(target: TensorProto, constant: gs.Constant, origin: TensorProto | None, name: str) -> None:
    """Fill `target` with a constant's values under `name`; what `origin` says beside the values is kept."""
    values = constant._values
    if isinstance(values, StoredValues) and not isinstance(values, StoredSparseValues):
        target.CopyFrom(values.tensor)  # the same bytes in the same form, typed or raw, external or not
        if values.tensor is not origin:
            _document(target, origin)
    else:
        _document(target, origin)
        fill(target, np.asarray(constant.values))
    if target.name != name:
        target.name = name


def _document(target: TensorProto, origin: TensorProto | None) -> None:
    for field in ("name", "doc_string"):
        target.ClearField(field)
        if origin is not None and origin.HasField(field):
            setattr(target, field, getattr(origin, field))
    del target.metadata_props[:]
    if origin is not None:
        target.metadata_props.extend(origin.metadata_props)


def fill(target: TensorProto, array: Array) -> None:
    """Set type, dims and data from an array, as raw bytes where the type has them."""
    target.dims.extend(array.shape)
    if array.dtype == object:
        target.data_type = TensorProto.STRING
        texts = (v if isinstance(v, bytes) else str(v).encode("utf-8", "surrogateescape") for v in array.flat)
        target.string_data.extend(texts)
        return
    target.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    if target.data_type in PACKED_BITS:
        target.raw_data = numpy_helper.from_array(array).raw_data
    else:
        target.raw_data = little_endian(array)


def write_node(target: NodeProto, constant: gs.Constant, origin: NodeProto) -> None:
    """Fill `target` with the Constant node of a constant; the attribute keeps its form if the new values fit it."""
    target.CopyFrom(origin)
    if target.output[0] != constant.name:
        target.output[0] = constant.name
    if isinstance(constant, Constant) and constant.is_unchanged:
        return
    attribute = target.attribute[0]
    old = origin.attribute[0]
    if attribute.name == "value":
        attribute.ClearField("t")
        write_tensor(attribute.t, constant, old.t, old.t.name)
        return
    data_type, rank, field, _ = _VALUE_ATTRIBUTES[attribute.name]
    array = np.asarray(constant.values)
    if array.ndim == rank and helper.np_dtype_to_tensor_dtype(array.dtype) == data_type:
        attribute.ClearField(field)
        if rank:
            getattr(attribute, field).extend(array.tolist())
        else:
            setattr(attribute, field, array.item())
        return
    attribute.ClearField(field)
    attribute.name, attribute.type = "value", AttributeProto.TENSOR
    fill(attribute.t, array)


@cache
def node_holds(dtype: np.dtype[np.generic], opset: int) -> bool:
    """May a Constant node give this type? Before opset 9, floats only."""
    try:
        schema = onnx.defs.get_schema("Constant", opset)
    except onnx.defs.SchemaError:  # an opset that is newer than the installed onnx
        return True
    allowed = {t for c in schema.type_constraints for t in c.allowed_type_strs}
    return f"tensor({TYPE_NAMES.get(dtype.name, dtype.name)})" in allowed


def write_new_node(target: NodeProto, constant: gs.Constant) -> None:
    """A Constant node for a new constant: before IR version 4 an initializer would have to be a graph input."""
    target.op_type = "Constant"
    target.output.append(constant.name)
    attribute = target.attribute.add(name="value", type=AttributeProto.TENSOR)
    write_tensor(attribute.t, constant, None, "")
