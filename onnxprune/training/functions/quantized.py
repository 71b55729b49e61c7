"""QuantizeLinear and DequantizeLinear, as fake quantization: forward the numbers are rounded, backward they pass as they are.

That is the straight-through estimator (Bengio et al. 2013), with which such models were trained; where a number was cut off at the end
of its range, no gradient passes. What is stored as codes stays as it is.
"""

from __future__ import annotations

import torch
from onnx import TensorProto

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported

RANGES = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
}


def beside(c: Call, i: int) -> Tensor | None:
    """Scale or zero point, shaped to broadcast: scalars, or one per position of `axis`, or one per block of it."""
    x, value = c[0], c.get(i)
    if value is None or value.dim() == 0 or value.numel() == 1:
        return None if value is None else value.reshape(())
    axis = c.attr("axis", 1) % x.dim()
    block = c.attr("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return value.reshape(shape)


def quantize(c: Call) -> Tensor:
    """Codes, as floats, so that gradients pass."""
    x, scale, zero = c[0], beside(c, 1), beside(c, 2)
    kind = c.types[2] if zero is not None else c.attr("output_dtype", 0) or TensorProto.UINT8
    if kind not in RANGES or scale is None:
        raise Unsupported
    exact = x / scale
    codes = exact + (torch.round(exact) - exact).detach()
    if zero is not None:
        codes = codes + zero.to(codes.dtype)
    return codes.clamp(*RANGES[kind])


def dequantize(c: Call) -> Tensor:
    x, scale, zero = c[0], beside(c, 1), beside(c, 2)
    assert scale is not None
    value = x.to(scale.dtype)
    return (value if zero is None else value - zero.to(scale.dtype)) * scale


FUNCTIONS: Table = {
    prefix + name: Function(run, passes=True)
    for prefix in ("", "com.microsoft::")
    for name, run in (("QuantizeLinear", quantize), ("DequantizeLinear", dequantize))
}
