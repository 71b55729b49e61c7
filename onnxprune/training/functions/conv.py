"""Convolutions of any rank, and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported, between

CONV = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMUM = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _of(table: Sequence[Any], rank: int) -> Any:
    if not 1 <= rank <= 3:
        raise Unsupported
    return table[rank - 1]


def _space(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, padding before and after, per axis of space; `auto_pad` resolved."""
    rank, sizes = len(kernel), c[0].shape[2:]
    strides, dilations = c.attr("strides") or [1] * rank, c.attr("dilations") or [1] * rank
    pads, auto = c.attr("pads") or [0] * 2 * rank, c.attr("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return strides, dilations, *((pads[:rank], pads[rank:]) if auto == "NOTSET" else ([0] * rank, [0] * rank))
    before, after = [], []
    for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return strides, dilations, before, after


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(before) and not any(after):
        return x
    return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value)


def laid_out(x: Tensor, is_grouped: bool = False) -> Tensor:
    """Pictures with their channels last in memory, as PyTorch's convolutions on a CPU like them: 1.1 to 1.9 times as fast, depthwise ones
    too. Groups of several channels are quicker with channels first (0.7). What follows keeps the order.
    """
    if x.dim() != 4 or x.dtype != torch.float32:
        return x
    return x.contiguous(memory_format=torch.contiguous_format if is_grouped else torch.channels_last)


def picked(x: Tensor, strides: Sequence[int]) -> Tensor:
    """What a kernel of one entry reads. The gradient of such a convolution with strides writes beyond its memory in PyTorch 2.13's oneDNN
    (channels last, an odd number of them, processors without AVX-512); with these entries taken out before, it has none.
    """
    for axis, stride in enumerate(strides, 2):
        if stride > 1:
            x = x[(slice(None),) * axis + (slice(None, None, stride),)]
    return x


def conv(c: Call) -> Tensor:
    """x: [N, I, ...]; weight: [O, I/g, ...]."""
    x, weight = c[0], c[1]
    strides, dilations, before, after = _space(c, weight.shape[2:])
    is_picking = set(weight.shape[2:]) == {1} and max(strides) > 1
    if list(before) != list(after) or (is_picking and any(before)):
        x, before = padded(x, before, after), [0] * len(before)
    if is_picking:
        x, strides = picked(x, strides), [1] * len(strides)
    run = _of(CONV, weight.dim() - 2)
    x = laid_out(x, c.attr("group", 1) > 1 and weight.shape[1] > 1)
    return run(x, weight, c.get(2), strides, before, dilations, c.attr("group", 1))


def conv_transpose(c: Call) -> Tensor:
    """x: [N, I, ...]; weight: [I, O/g, ...]. What the padding takes off is cropped, so that it may differ per side."""
    x, weight = c[0], c[1]
    rank = weight.dim() - 2
    strides, dilations = c.attr("strides") or [1] * rank, c.attr("dilations") or [1] * rank
    extra, pads = c.attr("output_padding") or [0] * rank, c.attr("pads") or [0] * 2 * rank
    wanted, auto = c.attr("output_shape"), c.attr("auto_pad", "NOTSET")
    spans = zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    full = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in spans]
    if wanted or auto.startswith("SAME"):
        wanted = wanted[-rank:] if wanted else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        total = [max(f + e - w, 0) for f, e, w in zip(full, extra, wanted, strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    y = _of(TRANSPOSED, rank)(x, weight, None, strides, 0, 0, c.attr("group", 1), dilations)
    y = padded(y, [0] * rank, extra)
    for a in range(rank):
        y = y.narrow(2 + a, pads[a], y.shape[2 + a] - pads[a] - pads[rank + a])
    return y if c.get(2) is None else y + c[2].reshape(-1, *[1] * rank)


def _windows(c: Call) -> tuple[Any, ...]:
    """Kernel, strides, dilations, padding before and after (the last window's with `ceil_mode`, as far as it starts inside)."""
    kernel = c.attr("kernel_shape")
    strides, dilations, before, after = _space(c, kernel)
    tail = [0] * len(kernel)
    if c.attr("ceil_mode", 0):
        for a, (n, k) in enumerate(zip(c[0].shape[2:], kernel, strict=True)):
            span = n + before[a] + after[a] - dilations[a] * (k - 1) - 1
            count = -(-span // strides[a]) + 1
            count -= (count - 1) * strides[a] >= n + before[a]
            tail[a] = max((count - 1) * strides[a] - span, 0)
    return kernel, strides, dilations, before, after, tail


def max_pool(c: Call) -> Tensor:
    if c.outputs > 1 or c.attr("storage_order", 0):
        raise Unsupported
    kernel, strides, dilations, before, after, tail = _windows(c)
    pool = _of(MAXIMUM, len(kernel))
    if list(before) == list(after) and not any(tail) and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(c[0], kernel, strides, before, dilations)
    x = padded(c[0], before, [a + t for a, t in zip(after, tail, strict=True)], float("-inf"))
    return pool(x, kernel, strides, 0, dilations)


def average_pool(c: Call) -> Tensor:
    """Divides by the positions that count: those of the input, and of the padding if it is included."""
    kernel, strides, dilations, before, after, tail = _windows(c)
    if any(d != 1 for d in dilations):
        raise Unsupported
    pool = _of(AVERAGE, len(kernel))
    if not any(before) and not any(after) and not any(tail):
        return pool(c[0], kernel, strides)
    ends = [a + t for a, t in zip(after, tail, strict=True)]
    ones = torch.ones((1, 1, *c[0].shape[2:]), dtype=c[0].dtype)
    counts = 1.0 if c.attr("count_include_pad", 0) else 0.0
    ones = padded(padded(ones, before, after, counts), [0] * len(tail), tail)
    return pool(padded(c[0], before, ends), kernel, strides) / pool(ones, kernel, strides)


def _axes(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


ACTIVATIONS: dict[str, Any] = {
    "Relu": F.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "LeakyRelu": lambda x, a=0.01: F.leaky_relu(x, a),
    "Clip": between, "HardSigmoid": lambda x, a=0.2, b=0.5: between(a * x + b, 0.0, 1.0),
}  # fmt: skip


def activated(c: Call, x: Tensor) -> Tensor:
    """The activation that a fused operator ends with."""
    name = c.attr("activation", "")
    if name and name not in ACTIVATIONS:
        raise Unsupported
    return ACTIVATIONS[name](x, *c.attr("activation_params", ())) if name else x


def fused_conv(c: Call) -> Tensor:
    y = conv(c)
    return activated(c, y if c.get(3) is None else y + c[3])


FUNCTIONS: Table = {
    "Conv": Function(conv, trains=(1, 2), decays=(1,)),
    "ConvTranspose": Function(conv_transpose, trains=(1, 2), decays=(1,)),
    "MaxPool": Function(max_pool),
    "AveragePool": Function(average_pool),
    "GlobalAveragePool": Function(lambda c: c[0].mean(dim=_axes(c[0]), keepdim=True)),
    "GlobalMaxPool": Function(lambda c: c[0].amax(dim=_axes(c[0]), keepdim=True)),
    "com.microsoft::FusedConv": Function(fused_conv, trains=(1, 2), decays=(1,)),
}
