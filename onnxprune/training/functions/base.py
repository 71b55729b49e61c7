"""What one operator is to the interpreter: a function of tensors, and which of its constant inputs are weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from onnx import TensorProto
from torch.nn import functional as F

Tensor: TypeAlias = Any  # torch.Tensor
EVERY = tuple(range(256))

TYPES = {
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT16: torch.int32,  # wider, because PyTorch computes little with the unsigned ones
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class Unsupported(Exception):
    """This form of the operator has no function; the node runs in ONNX Runtime, without gradients."""


@dataclass(frozen=True)
class Call:
    """One node on its way: `inputs` (None where skipped), decoded `attrs`, its domain's `opset`, number of `outputs`.

    float: what every floating type is computed in (float32; float64 to check gradients). types: element types of inputs that are
    constants, None for the others.
    """

    inputs: tuple[Tensor | None, ...]
    attrs: dict[str, Any]
    opset: int
    outputs: int
    float: Any = torch.float32
    types: tuple[int | None, ...] = ()

    def get(self, i: int) -> Tensor | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def __getitem__(self, i: int) -> Tensor:
        return self.inputs[i]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def ints(self, i: int, name: str = "", default: Any = None) -> Any:
        """Integers from input i, as newer opsets have them, else from the attribute `name`."""
        value = self.get(i)
        return value.reshape(-1).tolist() if value is not None else self.attrs.get(name, default)

    def type(self, data_type: int) -> Any:
        """The torch type of an ONNX element type."""
        if data_type in FLOATS:
            return self.float
        if data_type not in TYPES:
            raise Unsupported
        return TYPES[data_type]


@dataclass(frozen=True)
class Function:
    """run: inputs to output (or a tuple of outputs).

    trains: inputs at which a constant is a weight. decays: those of them that multiply and sum (weight decay and
    re-initialisation are for them). passes: it only moves its first input (all of them, if `trains` says so), so a
    constant behind it may still be a weight. blocked: no gradient passes.
    """

    run: Callable[[Call], Any]
    trains: tuple[int, ...] = ()
    decays: tuple[int, ...] = ()
    passes: bool = False
    blocked: bool = False


def between(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamped. Bounds are numbers wherever they can be, as the gradient of a clamp by tensors is ten passes over the values, and that of
    `hardtanh` is one.
    """
    low, high = (
        b.item() if isinstance(b, torch.Tensor) and b.numel() == 1 and b.dim() <= x.dim() and not b.requires_grad else b
        for b in (low, high)
    )
    if low is None and high is None:
        return x
    if x.is_floating_point() and isinstance(low, float) and isinstance(high, float) and low < high:
        return F.hardtanh(x, low, high)
    return torch.clamp(x, low, high)


Table: TypeAlias = dict[str, Function]
