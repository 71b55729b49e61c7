"""The table of operators that have a gradient, one file per family; domains other than ONNX's own are written `domain::Op`."""

from onnxprune.training.functions import conv, matmul, movement, norm, pointwise, quantized, recurrent, resize
from onnxprune.training.functions.base import Function, Table

FUNCTIONS: Table = {
    **pointwise.FUNCTIONS,
    **movement.FUNCTIONS,
    **conv.FUNCTIONS,
    **resize.FUNCTIONS,
    **matmul.FUNCTIONS,
    **norm.FUNCTIONS,
    **recurrent.FUNCTIONS,
    **quantized.FUNCTIONS,
}


def function_of(op: str, domain: str) -> Function | None:
    """The function of an operator; None where there is none."""
    return FUNCTIONS.get(op if domain in ("", "ai.onnx") else f"{domain}::{op}")
