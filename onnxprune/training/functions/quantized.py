"""DequantizeLinear: gradients pass to what comes before a rounding only where there is none, so int8 weights stay as they are."""

from __future__ import annotations

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported


def dequantize(c: Call) -> Tensor:
    """scale, zero point: scalars, or one per position of `axis`."""
    if c.attr("block_size", 0):
        raise Unsupported
    x, scale, zero = c[0], c[1], c.get(2)
    shape = [1] * x.dim()
    if scale.dim() == 1:
        shape[c.attr("axis", 1) % x.dim()] = -1
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    value = x.to(scale.dtype)
    return (value if zero is None else value - zero.to(scale.dtype)) * scale


FUNCTIONS: Table = {"DequantizeLinear": Function(dequantize)}
