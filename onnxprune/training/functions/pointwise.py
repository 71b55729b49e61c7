"""Operators that work position by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from onnxprune.training.functions.base import EVERY, Call, Function, Table, Tensor, Unsupported, between


def unary(function: Callable[[Tensor], Tensor]) -> Function:
    return Function(lambda c: function(c[0]))


def blocked(function: Callable[..., Tensor]) -> Function:
    return Function(lambda c: function(*c.inputs), blocked=True)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """A constant operand (a scale, a shift, a table of positions) is a weight."""
    return Function(lambda c: function(c[0], c[1]), trains=(0, 1))


def fold(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(c: Call) -> Tensor:
        result = c[0]
        for other in c.inputs[1:]:
            result = function(result, other)
        return result

    return Function(run)


def clip(c: Call) -> Tensor:
    low = c.get(1) if c.get(1) is not None else c.attr("min")
    high = c.get(2) if c.get(2) is not None else c.attr("max")
    return between(c[0], low, high)


def divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def modulo(c: Call) -> Tensor:
    return torch.fmod(c[0], c[1]) if c.attr("fmod", 0) else torch.remainder(c[0], c[1])


def power(c: Call) -> Tensor:
    """Exponents of one value are numbers: PyTorch then squares instead of taking logarithms."""
    base, exponent = c[0], c[1]
    if (
        exponent.numel() == 1
        and not exponent.requires_grad
        and base.is_floating_point()
        and exponent.dim() <= base.dim()
    ):
        return base ** exponent.item()
    return torch.pow(base, exponent).to(base.dtype)


def prelu(c: Call) -> Tensor:
    return torch.where(c[0] > 0, c[0], c[0] * c[1])


def cast(c: Call) -> Tensor:
    kind = c.type(c.attr("to"))
    value = c[0]
    if value.is_floating_point() and not kind.is_floating_point and kind != torch.bool:
        return value.detach().trunc().to(kind)
    return value.to(kind)


def softmax(function: Callable[..., Tensor]) -> Function:
    """Before opset 13 over all axes from `axis` (1 by default) on."""

    def run(c: Call) -> Tensor:
        x = c[0]
        if c.opset >= 13:
            return function(x, dim=c.attr("axis", -1))
        axis = c.attr("axis", 1) % max(x.dim(), 1)
        return function(x.reshape(*x.shape[:axis], -1), dim=-1).reshape(x.shape)

    return Function(run)


def gelu(c: Call) -> Tensor:
    return F.gelu(c[0], approximate=c.attr("approximate", "none"))


def hard_sigmoid(c: Call) -> Tensor:
    return between(c.attr("alpha", 0.2) * c[0] + c.attr("beta", 0.5), 0.0, 1.0)


def shrink(c: Call) -> Tensor:
    x, limit, bias = c[0], c.attr("lambd", 0.5), c.attr("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def dropout(c: Call) -> Any:
    """As at inference."""
    if c.get(2) is not None and bool(c[2]):
        raise Unsupported
    return (c[0], torch.ones_like(c[0], dtype=torch.bool)) if c.outputs > 1 else c[0]


def scaled(function: Callable[..., Tensor], **defaults: float) -> Function:
    """A function of its input and of attributes, in the order of `defaults`."""
    return Function(lambda c: function(c[0], *(c.attr(n, v) for n, v in defaults.items())))


def total(c: Call) -> Tensor:
    result = c[0]
    for other in c.inputs[1:]:
        result = result + other
    return result


def mean(c: Call) -> Tensor:
    return total(c) / len(c.inputs)


def where(c: Call) -> Tensor:
    return torch.where(c[0].bool(), c[1], c[2])


SELU = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


UNARY: dict[str, Any] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": F.softplus, "Softsign": F.softsign,
    "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Neg": torch.neg, "Abs": torch.abs, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin,
    "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh,
    "Acosh": torch.acosh, "Atanh": torch.atanh, "Mish": F.mish, "HardSwish": F.hardswish,
}  # fmt: skip
BLOCKED: dict[str, Any] = {
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Not": torch.logical_not,
    "IsNaN": torch.isnan, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
BINARY: dict[str, Any] = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divide}

FUNCTIONS: Table = {
    **{name: unary(function) for name, function in UNARY.items()},
    **{name: blocked(function) for name, function in BLOCKED.items()},
    **{name: binary(function) for name, function in BINARY.items()},
    "Max": fold(torch.maximum),
    "Min": fold(torch.minimum),
    "Sum": Function(total, trains=EVERY),
    "Mean": Function(mean),
    "Pow": Function(power),
    "Mod": Function(modulo),
    "Clip": Function(clip),
    "PRelu": Function(prelu, trains=(1,)),
    "LeakyRelu": scaled(F.leaky_relu, alpha=0.01),
    "Elu": scaled(F.elu, alpha=1.0),
    "Celu": scaled(F.celu, alpha=1.0),
    "Selu": scaled(_selu, **SELU),
    "ThresholdedRelu": scaled(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0),
    "Swish": scaled(lambda x, alpha: x * torch.sigmoid(alpha * x), alpha=1.0),
    "HardSigmoid": Function(hard_sigmoid),
    "Shrink": Function(shrink),
    "Gelu": Function(gelu),
    "Softmax": softmax(torch.softmax),
    "LogSoftmax": softmax(torch.log_softmax),
    "Where": Function(where),
    "Cast": Function(cast, passes=True),
    "CastLike": Function(lambda c: c[0].to(c[1].dtype), passes=True),
    "Identity": Function(lambda c: c[0], passes=True),
    "Dropout": Function(dropout),
    "com.microsoft::Gelu": unary(F.gelu),
    "com.microsoft::QuickGelu": scaled(lambda x, alpha: x * torch.sigmoid(alpha * x), alpha=1.702),
    "com.microsoft::BiasGelu": Function(lambda c: F.gelu(c[0] + c[1]), trains=(1,)),
    "com.microsoft::FastGelu": Function(
        lambda c: F.gelu(c[0] if c.get(1) is None else c[0] + c[1], approximate="tanh"), trains=(1,)
    ),
}
