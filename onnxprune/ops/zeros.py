"""Operators that make zeros of zeros, position by position."""

from __future__ import annotations

from onnxprune.model.graph import Node

# f(0, 0, ...) = 0; movement without values of its own
KEEP = frozenset(
    "Relu LeakyRelu PRelu ThresholdedRelu Elu Selu Celu Gelu Erf Tanh Sin Tan Asin Atan Sinh Asinh Atanh Softsign HardSwish Mish Swish Abs "
    "Neg Sign Ceil Floor Round Sqrt Add Sub Sum Mean Max Min Identity Cast Dropout Reshape Flatten Squeeze Unsqueeze Transpose "
    "Concat Split Slice Gather Expand Tile MaxPool AveragePool GlobalAveragePool GlobalMaxPool DepthToSpace SpaceToDepth".split()
)


def keeps_zero(node: Node) -> bool:
    """Is the output zero where all inputs are?"""
    return node.domain in ("", "ai.onnx") and node.op in KEEP


def any_zero(node: Node) -> bool:
    """Is the output zero where one operand is (and the others are finite)?"""
    return node.domain in ("", "ai.onnx") and node.op == "Mul"
