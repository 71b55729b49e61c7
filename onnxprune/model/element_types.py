"""Element types of tensors, from what the operators' schemas say.

Enough to know which activations hold numbers: `onnx.defs` names an output's type, or says that it is an input's. Where
neither helps (custom operators, loops) the type is unknown and taken for a float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.model.graph import Node, View

_TYPES: dict[tuple[str, int, str], list[tuple[str, int | None]]] = {}
NUMBERS = {"", "float", "double", "float16", "bfloat16", "int32", "int64"}


def kinds(view: View) -> dict[str, str]:
    """ONNX's name of the element type per tensor key ("float", "bool", …); tensors of unknown type are left out."""
    found = {key: _name(getattr(tensor, "dtype", None)) for key, tensor in view.tensors.items()}
    for node in view.graph.walk():
        for key, kind in zip(node.outputs, _outputs(node, view, found), strict=False):
            if key and kind and not found.get(key):
                found[key] = kind
        for graph in node.subgraphs.values():
            if len(graph.outputs) == len(node.outputs):  # a node that gives what its branch gives
                for key, inner in zip(node.outputs, graph.outputs, strict=True):
                    if key and not found.get(key) and found.get(inner):
                        found[key] = found[inner]
    return {key: kind for key, kind in found.items() if kind}


def _name(dtype: Any) -> str:
    if dtype is None:
        return ""
    try:
        number = dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except (TypeError, ValueError, KeyError):
        return ""


def _outputs(node: Node, view: View, found: dict[str, str]) -> list[str]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    key = (node.op, view.opsets.get(domain, 1), domain)
    if key not in _TYPES:
        _TYPES[key] = _schema(*key)
    if isinstance(node.attrs.get("to"), int):  # a cast names its type
        return [onnx.TensorProto.DataType.Name(node.attrs["to"]).lower() for _ in node.outputs]
    result = []
    for fixed, source in _TYPES[key]:
        known = source is not None and source < len(node.inputs)
        result.append(fixed or (found.get(node.inputs[source], "") if known and source is not None else ""))
    return result


def _schema(op: str, version: int, domain: str) -> list[tuple[str, int | None]]:
    """Per output: a fixed type, or the input whose type it has."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return []
    allowed = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    outputs: list[tuple[str, int | None]] = []
    for output in schema.outputs:
        options = allowed.get(output.type_str, [output.type_str])
        fixed = options[0].removeprefix("tensor(").rstrip(")") if len(options) == 1 else ""
        source = next((i for i, x in enumerate(schema.inputs) if x.type_str == output.type_str), None)
        outputs.append((fixed, source))
    return outputs
