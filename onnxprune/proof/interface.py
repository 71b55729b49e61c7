"""A pruned model has the inputs, outputs, metadata and opsets of its original, save for the axes that were to shrink."""

from __future__ import annotations

import onnx

from onnxprune.errors import VerificationError
from onnxprune.model.interface import Interface, declared, unmarked


def check_interface(original: onnx.ModelProto, pruned: onnx.ModelProto, ports: Interface = ()) -> None:
    """Inputs and outputs, metadata and opsets are those of the original. ports: axes of inputs and outputs that are shorter."""
    pruned = unmarked(pruned)
    for what in ("input", "output"):
        a = [declared(v, what, ports).SerializeToString(deterministic=True) for v in _interface(original, what)]
        b = [v.SerializeToString(deterministic=True) for v in _interface(pruned, what)]
        if a != b:
            raise VerificationError(
                f"The pruned model's {what}s are not those of the original"
                f"{', shrunk as the plan says' if ports else ''}. Please report this model."
            )
    same = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    if any(getattr(original, k) != getattr(pruned, k) for k in same) or list(original.metadata_props) != list(
        pruned.metadata_props
    ):
        raise VerificationError("The pruned model's metadata is not that of the original. Please report this model.")
    if {o.domain: o.version for o in original.opset_import} != {o.domain: o.version for o in pruned.opset_import}:
        raise VerificationError("The pruned model's opsets are not those of the original. Please report this model.")


def _interface(model: onnx.ModelProto, what: str) -> list[onnx.ValueInfoProto]:
    constants = {t.name for t in model.graph.initializer}
    return [v for v in getattr(model.graph, what) if v.name not in constants]
