"""Operators that move, copy or choose values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from onnxprune.training.functions.base import EVERY, Call, Function, Table, Tensor, Unsupported


def reshape(c: Call) -> Tensor:
    x, target = c[0], c.ints(1, "shape")
    if not c.attr("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


def flatten(c: Call) -> Tensor:
    x = c[0]
    axis = c.attr("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def transpose(c: Call) -> Tensor:
    return c[0].permute(c.attr("perm") or list(range(c[0].dim()))[::-1])


def squeeze(c: Call) -> Tensor:
    x, axes = c[0], c.ints(1, "axes")
    gone = {a % x.dim() for a in axes} if axes is not None else {a for a, n in enumerate(x.shape) if n == 1}
    return x.reshape([n for a, n in enumerate(x.shape) if a not in gone])


def unsqueeze(c: Call) -> Tensor:
    x, axes = c[0], c.ints(1, "axes")
    rank = x.dim() + len(axes)
    new = {a % rank for a in axes}
    sizes = iter(x.shape)
    return x.reshape([1 if a in new else next(sizes) for a in range(rank)])


def concat(c: Call) -> Tensor:
    return torch.cat([x for x in c.inputs if x is not None], dim=c.attr("axis", 0))


def split(c: Call) -> tuple[Tensor, ...]:
    x, axis, sizes = c[0], c.attr("axis", 0), c.ints(1, "split")
    if sizes is None:
        n = x.shape[axis]
        each = -(-n // c.outputs)
        sizes = [min(each, n - k * each) for k in range(c.outputs)]
    return tuple(torch.split(x, sizes, dim=axis))


def slice_(c: Call) -> Tensor:
    x = c[0]
    starts, ends = c.ints(1, "starts"), c.ints(2, "ends")
    axes = c.ints(3, "axes") or list(range(len(starts)))
    steps = c.ints(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = axis % x.dim()
        bounds = slice(start, end if step > 0 or end >= -x.shape[axis] else None, step).indices(x.shape[axis])
        if step == 1:
            x = x.narrow(axis, bounds[0], max(bounds[1] - bounds[0], 0))
        else:
            x = x.index_select(axis, torch.tensor(list(range(*bounds)), dtype=torch.int64))
    return x


def amounts(c: Call, rank: int) -> tuple[dict[int, int], dict[int, int], float]:
    """By how much a Pad widens each axis before and after, and with what."""
    pads = c.ints(1, "pads")
    axes = [a % rank for a in (c.ints(3) or range(rank))]
    given = c.get(2)
    value = c.attr("value", 0.0) if given is None else given.item()
    return dict(zip(axes, pads[: len(axes)], strict=True)), dict(zip(axes, pads[len(axes) :], strict=True)), value


def pad(c: Call) -> Tensor:
    x, mode = c[0], c.attr("mode", "constant")
    before, after, value = amounts(c, x.dim())
    axes = list(before)
    if mode == "constant":
        flat = [n for a in reversed(range(x.dim())) for n in (before.get(a, 0), after.get(a, 0))]
        return F.pad(x, flat, value=value)
    for a in axes:  # any axis, any rank: positions of the source
        if before[a] or after[a]:
            where = np.pad(np.arange(x.shape[a]), (before[a], after[a]), mode=mode)
            x = x.index_select(a, torch.from_numpy(where))
    return x


def tile(c: Call) -> Tensor:
    return c[0].repeat(c.ints(1))


def expand(c: Call) -> Tensor:
    return c[0].expand(torch.broadcast_shapes(tuple(c[0].shape), tuple(c.ints(1))))


def depth_to_space(c: Call) -> Tensor:
    x, s = c[0], c.attr("blocksize")
    n, d, h, w = x.shape
    if c.attr("mode", "DCR") == "DCR":
        return x.reshape(n, s, s, d // s**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, d // s**2, h * s, w * s)
    return x.reshape(n, d // s**2, s, s, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, d // s**2, h * s, w * s)


def space_to_depth(c: Call) -> Tensor:
    x, s = c[0], c.attr("blocksize")
    n, d, h, w = x.shape
    return x.reshape(n, d, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(n, d * s * s, h // s, w // s)


def gather(c: Call) -> Tensor:
    x, where, axis = c[0], c[1], c.attr("axis", 0)
    axis = axis % x.dim()
    if where.dim() == 0:
        return x.select(axis, int(where))
    flat = torch.where(where < 0, where + x.shape[axis], where).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


def _positive(where: Tensor, size: int) -> Tensor:
    return torch.where(where < 0, where + size, where).long()


def gather_elements(c: Call) -> Tensor:
    axis = c.attr("axis", 0)
    return torch.gather(c[0], axis, _positive(c[1], c[0].shape[axis]))


def gather_nd(c: Call) -> Tensor:
    x, where, batch = c[0], c[1], c.attr("batch_dims", 0)
    lead = x.shape[:batch]
    x, where = x.reshape(-1, *x.shape[batch:]), where.reshape(-1, *where.shape[batch:])
    index = _columns(where, x.shape[1:])
    rows = torch.arange(x.shape[0]).reshape(-1, *[1] * (where.dim() - 2))
    return (x[(rows, *index)]).reshape(*lead, *where.shape[1:-1], *x.shape[1 + where.shape[-1] :])


def _columns(where: Tensor, sizes: Any) -> tuple[Tensor, ...]:
    return tuple(_positive(where[..., k], sizes[k]) for k in range(where.shape[-1]))


def scatter_nd(c: Call) -> Tensor:
    if c.attr("reduction", "none") not in ("none", "add"):
        raise Unsupported
    return c[0].index_put(_columns(c[1], c[0].shape), c[2], accumulate=c.attr("reduction", "none") == "add")


def scatter_elements(c: Call) -> Tensor:
    axis, reduction = c.attr("axis", 0), c.attr("reduction", "none")
    where = _positive(c[1], c[0].shape[axis])
    if reduction == "none":
        return c[0].scatter(axis, where, c[2])
    if reduction != "add":
        raise Unsupported
    return c[0].scatter_add(axis, where, c[2])


def shape(c: Call) -> Tensor:
    sizes = list(c[0].shape)
    return torch.tensor(sizes[c.attr("start", 0) : c.attr("end", len(sizes))], dtype=torch.int64)


def constant_of_shape(c: Call) -> Tensor:
    value = c.attr("value")
    value = torch.zeros(1, dtype=c.float) if value is None else value
    return value.reshape(()).expand(c[0].reshape(-1).tolist()).clone()


def range_(c: Call) -> Tensor:
    return torch.arange(c[0].item(), c[1].item(), c[2].item(), dtype=c[0].dtype)


def one_hot(c: Call) -> Tensor:
    where, depth, values, axis = c[0].long(), int(c[1]), c[2], c.attr("axis", -1)
    hit = torch.arange(depth) == _positive(where, depth).unsqueeze(-1)
    result = torch.where(hit, values[1], values[0])
    return result.movedim(-1, axis % result.dim())


def trilu(c: Call) -> Tensor:
    k = int(c[1]) if c.get(1) is not None else 0
    return torch.triu(c[0], k) if c.attr("upper", 1) else torch.tril(c[0], k)


def cumsum(c: Call) -> Tensor:
    x, axis = c[0], int(c[1])
    x = x.flip(axis) if c.attr("reverse", 0) else x
    y = torch.cumsum(x, axis)
    y = y - x if c.attr("exclusive", 0) else y
    return y.flip(axis) if c.attr("reverse", 0) else y.to(x.dtype)


def top_k(c: Call) -> tuple[Tensor, Tensor]:
    k = int(c[1]) if c.get(1) is not None else c.attr("k")
    x, axis, largest = c[0], c.attr("axis", -1), bool(c.attr("largest", 1))
    order = torch.sort(x, dim=axis, descending=largest, stable=True)  # ties go to the lower index, as ONNX says
    return order.values.narrow(axis, 0, k), order.indices.narrow(axis, 0, k)


def arg(function: Any) -> Function:
    def run(c: Call) -> Tensor:
        if c.attr("select_last_index", 0):
            raise Unsupported
        return function(c[0], dim=c.attr("axis", 0), keepdim=bool(c.attr("keepdims", 1)))

    return Function(run, blocked=True)


def eye_like(c: Call) -> Tensor:
    kind = c.type(c.attr("dtype")) if c.attr("dtype") else c[0].dtype
    k = c.attr("k", 0)
    return torch.diag(torch.ones(max(c[0].shape) + abs(k), dtype=kind), k)[: c[0].shape[0], : c[0].shape[1]]


FUNCTIONS: Table = {
    "Reshape": Function(reshape, passes=True),
    "Flatten": Function(flatten, passes=True),
    "Transpose": Function(transpose, passes=True),
    "Squeeze": Function(squeeze, passes=True),
    "Unsqueeze": Function(unsqueeze, passes=True),
    "Concat": Function(concat, trains=EVERY, passes=True),
    "Split": Function(split, passes=True),
    "Slice": Function(slice_, passes=True),
    "Pad": Function(pad),
    "Tile": Function(tile, trains=(0,), passes=True),
    "Expand": Function(expand, trains=(0,), passes=True),
    "DepthToSpace": Function(depth_to_space),
    "SpaceToDepth": Function(space_to_depth),
    "Gather": Function(gather, trains=(0,), passes=True),
    "GatherElements": Function(gather_elements, trains=(0,)),
    "GatherND": Function(gather_nd, trains=(0,)),
    "ScatterND": Function(scatter_nd),
    "ScatterElements": Function(scatter_elements),
    "Shape": Function(shape, blocked=True),
    "Size": Function(lambda c: torch.tensor(c[0].numel(), dtype=torch.int64), blocked=True),
    "ConstantOfShape": Function(constant_of_shape, blocked=True),
    "Range": Function(range_, blocked=True),
    "OneHot": Function(one_hot, blocked=True),
    "Trilu": Function(trilu),
    "CumSum": Function(cumsum),
    "TopK": Function(top_k),
    "ArgMax": arg(torch.argmax),
    "ArgMin": arg(torch.argmin),
    "NonZero": Function(lambda c: torch.nonzero(c[0]).T, blocked=True),
    "EyeLike": Function(eye_like, blocked=True),
}
