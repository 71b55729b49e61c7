"""Resize as one small matrix per axis: out = M @ in, which is exact for every mode and has its gradient for free."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported

ROUND: dict[str, Any] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _source(out: int, size: int, scale: Any, mode: str) -> NDArray[Any]:
    """Where each output position lies in the input (ONNX, Resize, coordinate_transformation_mode), in float32 like ONNX Runtime."""
    x: NDArray[Any] = np.arange(out, dtype=np.float32)
    scale = np.float32(scale)
    if mode == "half_pixel":
        return np.asarray((x + 0.5) / scale - 0.5)
    if mode == "half_pixel_symmetric":
        return np.asarray(size / 2 * (1 - out / (scale * size)) + (x + 0.5) / scale - 0.5)
    if mode == "pytorch_half_pixel":
        return np.asarray((x + 0.5) / scale - 0.5) if out > 1 else np.zeros(1)
    if mode == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if mode == "asymmetric":
        return np.asarray(x / scale)
    raise Unsupported


def _taps(c: Call, fraction: NDArray[Any]) -> NDArray[Any]:
    """Weights of the neighbours, [out, 2] or [out, 4]."""
    if c.attr("mode", "nearest") == "linear":
        return np.stack([1 - fraction, fraction], 1)
    a = c.attr("cubic_coeff_a", -0.75)
    near = [1 + fraction, fraction, 1 - fraction, 2 - fraction]
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in near]
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in near]
    return np.stack([outer[0], inner[1], inner[2], outer[3]], 1)


def matrix(c: Call, out: int, size: int, scale: float) -> NDArray[Any]:
    """[out, size]"""
    mode = c.attr("coordinate_transformation_mode", "half_pixel")
    x = _source(out, size, scale, mode)
    m = np.zeros((out, size))
    rows = np.arange(out)
    if c.attr("mode", "nearest") == "nearest":
        near = ROUND[c.attr("nearest_mode", "round_prefer_floor")](x)
        m[rows, np.clip(near, 0, size - 1).astype(int)] = 1
        return m
    if c.attr("antialias", 0) and scale < 1:
        return _smoothed(c, x, size, scale)
    first = np.floor(x).astype(int)
    taps = _taps(c, x - first)
    offsets = [0, 1] if taps.shape[1] == 2 else [-1, 0, 1, 2]
    for k, offset in enumerate(offsets):
        where = first + offset
        inside = (where >= 0) & (where < size)
        weight = np.where(inside, taps[:, k], 0.0) if c.attr("exclude_outside", 0) else taps[:, k]
        np.add.at(m, (rows, np.clip(where, 0, size - 1)), weight)
    return m / m.sum(axis=1, keepdims=True) if c.attr("exclude_outside", 0) else m


def _smoothed(c: Call, x: NDArray[Any], size: int, scale: float) -> NDArray[Any]:
    """[out, size]: the kernel is as much wider as the picture gets smaller (`antialias`). Beyond an edge is what lies at it."""
    reach = int(np.ceil(2 / scale)) + 1
    positions = np.arange(-reach, size + reach)
    away = np.abs(positions - x[:, None]) * scale
    if c.attr("mode", "nearest") == "linear":
        weights = np.maximum(1 - away, 0)
    else:
        a = c.attr("cubic_coeff_a", -0.75)
        outer, inner = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a, ((a + 2) * away - (a + 3)) * away**2 + 1
        weights = np.where(away <= 1, inner, np.where(away < 2, outer, 0.0))
    if c.attr("exclude_outside", 0):
        weights = np.where((positions >= 0) & (positions < size), weights, 0.0)
    m = np.zeros((len(x), size))
    np.add.at(m.T, np.clip(positions, 0, size - 1), (weights / weights.sum(axis=1, keepdims=True)).T)
    return m


def resize(c: Call) -> Tensor:
    x = c[0]
    if c.opset < 11:
        raise Unsupported
    scales, sizes = c.get(2), c.get(3)
    axes = [a % x.dim() for a in (c.attr("axes") or range(x.dim()))]
    if sizes is not None and sizes.numel():
        outs = sizes.tolist()
        factors = [o / x.shape[a] for o, a in zip(outs, axes, strict=True)]
        if c.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported
    else:
        factors = scales.tolist() if scales is not None else []
        outs = [int(np.float32(x.shape[a]) * np.float32(f)) for a, f in zip(axes, factors, strict=True)]
    for a, out, factor in zip(axes, outs, factors, strict=True):
        if out != x.shape[a] or factor != 1:
            m = torch.from_numpy(matrix(c, out, x.shape[a], factor)).to(x.dtype)
            x = torch.tensordot(x, m, dims=([a], [1])).movedim(-1, a)
    return x


def upsample(c: Call) -> Tensor:
    """Opset 9 and before: asymmetric, floor."""
    factors = c.ints(1, "scales")
    attrs: dict[str, Any] = {"mode": c.attr("mode", "nearest"), "nearest_mode": "floor"}
    attrs["coordinate_transformation_mode"] = "asymmetric"
    return resize(Call((c[0], None, torch.tensor(factors)), attrs, 11, 1, c.float))


def grid_sample(c: Call) -> Tensor:
    mode = c.attr("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding = c.attr("padding_mode", "zeros")
    return F.grid_sample(c[0], c[1], mode, padding, align_corners=bool(c.attr("align_corners", 0)))


FUNCTIONS: Table = {
    "Resize": Function(resize),
    "Upsample": Function(upsample),
    "GridSample": Function(grid_sample),
}
