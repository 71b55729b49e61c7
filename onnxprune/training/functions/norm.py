"""Normalizations and reductions. BatchNormalization is its inference form: running statistics stay, scale and bias train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def batch_norm(c: Call) -> Any:
    """scale, bias, mean, variance: [C]. In training mode (exporters spell standardised weights so) the statistics are the input's."""
    if c.attr("training_mode", 0):
        return _batch_statistics(c)
    if c.outputs > 1:
        raise Unsupported
    factor = c[1] * torch.rsqrt(c[4] + c.attr("epsilon", 1e-5))
    return c[0] * _channels(factor, c[0]) + _channels(c[2] - c[3] * factor, c[0])


def _batch_statistics(c: Call) -> Any:
    x, keep = c[0], c.attr("momentum", 0.9)
    dims = [a for a in range(x.dim()) if a != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    factor = c[1] * torch.rsqrt(variance + c.attr("epsilon", 1e-5))
    y = x * _channels(factor, x) + _channels(c[2] - mean * factor, x)
    return (y, c[3] * keep + mean * (1 - keep), c[4] * keep + variance * (1 - keep))[: max(c.outputs, 1)]


def layer_norm(c: Call) -> Any:
    x, axis = c[0], c.attr("axis", -1)
    dims = list(range(axis % x.dim(), x.dim()))
    if c.outputs == 1:
        return F.layer_norm(x, [x.shape[a] for a in dims], None, None, c.attr("epsilon", 1e-5)) * c[1] + _or_zero(c, 2)
    mean = x.mean(dims, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + c.attr("epsilon", 1e-5))
    return (x - mean) * inverse * c[1] + _or_zero(c, 2), mean, inverse


def _or_zero(c: Call, i: int) -> Tensor:
    return 0.0 if c.get(i) is None else c[i]


def rms_norm(c: Call) -> Any:
    x, axis = c[0], c.attr("axis", -1)
    dims = list(range(axis % x.dim(), x.dim()))
    inverse = torch.rsqrt(x.square().mean(dims, keepdim=True) + c.attr("epsilon", 1e-5))
    return (x * inverse * c[1], inverse)[: c.outputs] if c.outputs > 1 else x * inverse * c[1]


def instance_norm(c: Call) -> Tensor:
    x = c[0]
    dims = list(range(2, x.dim()))
    mean = x.mean(dims, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + c.attr("epsilon", 1e-5))
    return (x - mean) * inverse * _channels(c[1], x) + _channels(c[2], x)


def group_norm(c: Call) -> Tensor:
    """scale, bias: [groups] before opset 21, [C] from then on."""
    x, groups = c[0], c.attr("num_groups")
    y = F.group_norm(x, groups, None, None, c.attr("epsilon", 1e-5))
    scale, bias = (v.repeat_interleave(x.shape[1] // v.shape[0]) for v in (c[1], c[2]))
    return y * _channels(scale, x) + _channels(bias, x)


def lp_norm(c: Call) -> Tensor:
    axis, p = c.attr("axis", -1), c.attr("p", 2)
    norm = c[0].abs().sum(axis, keepdim=True) if p == 1 else c[0].square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(c[0]), c[0] / torch.where(norm == 0, torch.ones_like(norm), norm))


def lrn(c: Call) -> Tensor:
    return F.local_response_norm(c[0], c.attr("size"), c.attr("alpha", 1e-4), c.attr("beta", 0.75), c.attr("bias", 1.0))


def mean_variance(c: Call) -> Tensor:
    axes = c.attr("axes") or [0, 2, 3]
    apart = c[0] - c[0].mean(axes, keepdim=True)
    return apart / (apart.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def skip_layer_norm(simplified: bool) -> Function:
    """input, skip, gamma, beta (not when simplified), bias -> output, mean, inverse, sum."""

    def run(c: Call) -> Any:
        bias = c.get(3 if simplified else 4)
        total = c[0] + c[1] + (0.0 if bias is None else bias)
        inner = Call(
            (total, c[2], None if simplified else c.get(3)), {"epsilon": c.attr("epsilon", 1e-5)}, 17, 1, c.float
        )
        y = rms_norm(inner) if simplified else layer_norm(inner)
        return (y, None, None, total)[: c.outputs] if c.outputs > 1 else y

    return Function(run, trains=(2, 3, 4))


def reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    """Axes are an attribute, or an input in newer opsets."""

    def run(c: Call) -> Tensor:
        x, axes = c[0], c.ints(1, "axes")
        if not axes:
            if c.attr("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        return function(x, [a % x.dim() for a in axes], bool(c.attr("keepdims", 1))) if x.dim() else x

    return Function(run, trains=(0,))


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keep) if x.is_floating_point() else x.to(torch.float64).mean(axes, keep).to(x.dtype)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "Sum": lambda x, a, k: x.sum(a, k, dtype=x.dtype),
    "Mean": _mean,
    "Max": lambda x, a, k: x.amax(a, k),
    "Min": lambda x, a, k: x.amin(a, k),
    "Prod": _prod,
    "L1": lambda x, a, k: x.abs().sum(a, k),
    "L2": lambda x, a, k: torch.linalg.vector_norm(x, dim=a, keepdim=k),
    "LogSum": lambda x, a, k: x.sum(a, k).log(),
    "LogSumExp": lambda x, a, k: torch.logsumexp(x, a, k),
    "SumSquare": lambda x, a, k: x.square().sum(a, k),
}

FUNCTIONS: Table = {
    "BatchNormalization": Function(batch_norm, trains=(0, 1, 2)),
    "LayerNormalization": Function(layer_norm, trains=(1, 2)),
    "RMSNormalization": Function(rms_norm, trains=(1,)),
    "SimplifiedLayerNormalization": Function(rms_norm, trains=(1,)),
    "InstanceNormalization": Function(instance_norm, trains=(1, 2)),
    "GroupNormalization": Function(group_norm, trains=(1, 2)),
    "LpNormalization": Function(lp_norm),
    "LRN": Function(lrn),
    "MeanVarianceNormalization": Function(mean_variance),
    "com.microsoft::SkipLayerNormalization": skip_layer_norm(simplified=False),
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_layer_norm(simplified=True),
    **{f"Reduce{name}": reduce(function) for name, function in REDUCTIONS.items()},
}
