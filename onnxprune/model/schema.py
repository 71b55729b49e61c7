"""What onnx's own operator schemas ask of a node: how many inputs and outputs, which attributes of which type.

The rules of operators may take this for granted; a node that breaks it is refused when the model is loaded.
"""

from dataclasses import dataclass
from functools import lru_cache

import onnx
from onnx import AttributeProto, NodeProto

from onnxprune.errors import quoted

Kind = int  # an AttributeProto.AttributeType


@dataclass(frozen=True)
class Schema:
    """inputs, outputs: least and most; needed: inputs that may not be skipped; types, required: of attributes.

    switch: the input that says whether the operator trains, where it has one.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed: tuple[int, ...]
    types: dict[str, Kind]
    required: tuple[str, ...]
    switch: int | None = None

    def fault(self, node: NodeProto) -> str | None:
        """What is wrong with a node, as the end of a sentence that begins with its name."""
        for what, (least, most), have in (
            ("inputs", self.inputs, len(node.input)),
            ("outputs", self.outputs, len(node.output)),
        ):
            if not least <= have <= most:
                wanted = f"{least}" if least == most else f"{least} to {most}"
                return f"has {have} {what} where its operator takes {wanted}"
        for index in self.needed:
            if index < len(node.input) and not node.input[index]:
                return f"skips its input {index}, which its operator needs"
        given = {a.name: a.type for a in node.attribute}
        for name in self.required:
            if name not in given:
                return f"lacks the attribute '{name}' that its operator needs"
        for name, kind in given.items():
            if name.startswith("__"):  # exporters' own marks
                continue
            if name not in self.types:
                return f"has an attribute {quoted(name)} that its operator does not have"
            if kind != self.types[name]:
                have_type, want_type = _name(kind), _name(self.types[name])
                return f"has an attribute '{name}' of type {have_type} where its operator takes {want_type}"
        return None


def _name(kind: Kind) -> str:
    return str(AttributeProto.AttributeType.Name(kind))


@lru_cache(maxsize=4096)
def schema_of(op: str, domain: str, version: int) -> Schema | None:
    """The schema in force at an opset version; None for operators that onnx does not know."""
    if not 0 < version < 1 << 31:
        return None
    try:
        schema = onnx.defs.get_schema(op, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return Schema(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(i for i, p in enumerate(schema.inputs) if p.option == single),
        {name: int(a.type) for name, a in schema.attributes.items()},
        tuple(name for name, a in schema.attributes.items() if a.required),
        next((i for i, p in enumerate(schema.inputs) if p.name == "training_mode"), None),
    )
