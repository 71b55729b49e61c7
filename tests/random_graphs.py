"""Random models whose shapes always fit, from a list of small numbers, so that hypothesis can shrink them.

    build([("conv", 0, 3, 1), ("batch_norm", 0, 0, 0)], seed=0)

A program is a list of steps `(name, which tensor, p, q)`; a step that does not fit the tensor it is given is left out. Tensors are images
`[N, C, H, W]`, sequences `[N, S, D]` or rows `[N, D]`; what nobody reads in the end gets a small head of its own and is an output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Step = tuple[str, int, int, int]
BATCH = 0  # stands for the symbolic batch in shapes
MAX_WIDTH = 24


class Builder:
    """Nodes, constants and the tensors made so far: `values` holds `(name, shape)`."""

    def __init__(self, seed: int, fixed_batch: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: list[tuple[str, tuple[int, ...]]] = []
        self.count = 0
        self.shared: dict[tuple[int, ...], str] = {}
        self.batch = fixed_batch

    def name(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        names = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"/{names[0]}", **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value: Any, base: str = "const") -> str:
        name = self.name(base)
        self.constants[name] = np.asarray(value)
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64), "ints")

    def weight(self, *shape: int, fan: int = 1, share: bool = False) -> str:
        """Random values of the order of 1/sqrt(fan); with `share`, one that exists already with that shape, if any."""
        if share and shape in self.shared:
            return self.shared[shape]
        name = self.const((self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), "weight")
        self.shared[shape] = name
        return name

    def positive(self, *shape: int) -> str:
        return self.const((self.rng.random(shape) + 0.5).astype(np.float32), "positive")

    def add(self, name: str, *shape: int) -> None:
        self.values.append((name, shape))

    def target(self, *sizes: int) -> str:
        """A Reshape target in which 0 is the batch."""
        return self.ints(*sizes)


Rule = Callable[[Builder, str, tuple[int, ...], int, int], bool | None]
UNARY = ["Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Neg", "Cos", "Elu", "Identity", "LeakyRelu", "Erf", "Abs"]


def images(step: Rule) -> Rule:
    return lambda b, x, s, p, q: step(b, x, s, p, q) if len(s) == 4 else False


def sequences(step: Rule) -> Rule:
    return lambda b, x, s, p, q: step(b, x, s, p, q) if len(s) == 3 else False


def divisor(n: int, p: int) -> int:
    return [d for d in range(1, n + 1) if n % d == 0][p % sum(n % d == 0 for d in range(1, n + 1))]


# ---------------------------------------------------------------- images


def conv(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    out, k, stride = 2 + p % 11, (1, 3)[q % 2], 2 if q % 5 == 4 and s[2] > 3 else 1
    inputs = [x, b.weight(out, s[1], k, k, fan=s[1] * k * k, share=q % 3 == 0)]
    if p % 2:
        inputs.append(b.weight(out, share=q % 3 == 0))
    y = b.op("Conv", inputs, pads=[k // 2] * 4, strides=[stride] * 2)
    b.add(y, 0, out, *((n + stride - 1) // stride for n in s[2:]))


def grouped(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    g = divisor(s[1], p)
    out = g * (1 + q % 4)
    if out > MAX_WIDTH:
        return
    i = s[1] // g
    y = b.op("Conv", [x, b.weight(out, i, 3, 3, fan=9 * i), b.weight(out)], group=g, pads=[1] * 4)
    b.add(y, 0, out, *s[2:])


def conv_transpose(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    g = divisor(s[1], q)
    out = 1 + p % 4
    if out * g > MAX_WIDTH or s[2] > 6:
        return False
    y = b.op("ConvTranspose", [x, b.weight(s[1], out, 2, 2, fan=s[1])], group=g, strides=[2, 2])
    b.add(y, 0, out * g, s[2] * 2, s[3] * 2)
    return None


def batch_norm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    c = s[1]
    y = b.op("BatchNormalization", [x, b.weight(c), b.weight(c), b.weight(c), b.positive(c)])
    b.add(y, *s)


def instance_norm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    b.add(b.op("InstanceNormalization", [x, b.weight(s[1]), b.weight(s[1])], epsilon=0.1), *s)


def group_norm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """As torch exports it: instance normalization of a view as groups."""
    g = divisor(s[1], p)
    y = b.op("Reshape", [x, b.target(0, g, -1)])
    y = b.op("InstanceNormalization", [y, b.weight(g), b.weight(g)], epsilon=0.1)
    y = b.op("Reshape", [y, b.target(0, *s[1:])])
    b.add(b.op("Mul", [y, b.weight(s[1], 1, 1)]), *s)


def pool(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if s[2] < 2 or s[3] < 2:
        return False
    kind = ("MaxPool", "AveragePool")[p % 2]
    b.add(b.op(kind, [x], kernel_shape=[2, 2], strides=[2, 2]), 0, s[1], s[2] // 2, s[3] // 2)
    return None


def global_pool(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    kind = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")[p % 4]
    more = {"axes": [-2, -1]} if kind.startswith("Reduce") else {}
    b.add(b.op(kind, [x], **more), 0, s[1], 1, 1)


def resize(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if s[2] > 6:
        return False
    out = (s[2] * 2, s[3] * 2)
    if p % 2:
        y = b.op("Resize", [x, "", b.const(np.array([1, 1, 2, 2], np.float32))], mode="nearest")
    else:
        size = b.op("Slice", [b.op("Shape", [x]), b.ints(0), b.ints(2)])
        y = b.op("Resize", [x, "", "", b.op("Concat", [size, b.ints(*out)], axis=0)], mode=("nearest", "linear")[q % 2])
    b.add(y, 0, s[1], *out)
    return None


def pad(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    channels = (p % 3, q % 2) if q % 3 == 0 else (0, 0)
    space = 0 if any(channels) or s[2] > 7 else 1
    amounts = [0, channels[0], space, 0, 0, channels[1], 0, space]
    if s[1] + sum(channels) > MAX_WIDTH:
        return False
    value = [b.const(np.float32(0.7))] if q % 5 == 1 else []
    b.add(b.op("Pad", [x, b.ints(*amounts), *value]), 0, s[1] + sum(channels), s[2] + space, s[3] + space)
    return None


def squeeze_excite(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    c, inner = s[1], 2 + p % 5
    h = b.op("ReduceMean", [x], axes=[2, 3])
    h = b.op("Relu", [b.op("Conv", [h, b.weight(inner, c, 1, 1, fan=c), b.weight(inner)])])
    h = b.op(("Sigmoid", "HardSigmoid")[q % 2], [b.op("Conv", [h, b.weight(c, inner, 1, 1, fan=inner)])])
    b.add(b.op("Mul", [x, h] if q % 3 else [h, x]), *s)


def shuffle(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    g = divisor(s[1], p)
    if g in (1, s[1]):
        return False
    y = b.op("Reshape", [x, b.target(0, g, s[1] // g, *s[2:])])
    y = b.op("Transpose", [y], perm=[0, 2, 1, 3, 4])
    b.add(b.op("Reshape", [y, b.target(0, -1, *s[2:])]), *s)
    return None


def depth_to_space(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if s[1] % 4 or s[2] > 5:
        return False
    y = b.op("DepthToSpace", [x], blocksize=2, mode=("DCR", "CRD")[p % 2])
    b.add(y, 0, s[1] // 4, s[2] * 2, s[3] * 2)
    return None


def space_to_depth(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if s[2] % 2 or s[3] % 2 or s[1] * 4 > MAX_WIDTH:
        return False
    b.add(b.op("SpaceToDepth", [x], blocksize=2), 0, s[1] * 4, s[2] // 2, s[3] // 2)
    return None


def prelu(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    slope = [(s[1], 1, 1), (s[3],), (1,), (1, s[1], 1, 1)][p % 4]
    b.add(b.op("PRelu", [x, b.weight(*slope)]), *s)


def to_sequence(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if s[2] * s[3] > 64:
        return False
    y = b.op("Reshape", [x, b.target(0, (s[1], -1)[p % 2], (-1, s[2] * s[3])[p % 2])])
    b.add(b.op("Transpose", [y], perm=[0, 2, 1]), 0, s[2] * s[3], s[1])
    return None


def flatten(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    size = int(np.prod(s[1:]))
    if size > 400:
        return False
    y = b.op("Flatten", [x], axis=1) if p % 2 else b.op("Reshape", [x, b.target(0, -1)])
    b.add(y, 0, size)
    return None


def channels_last(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    y = b.op("Transpose", [x], perm=[0, 2, 3, 1])
    y = b.op(("Add", "Mul")[p % 2], [y, b.weight(s[1])])
    b.add(b.op("Transpose", [y], perm=[0, 3, 1, 2]), *s)


# ---------------------------------------------------------------- sequences and rows


def linear(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if len(s) == 4:
        return False
    out = 2 + p % 12
    w = (s[-1], out)
    if len(s) == 2 and q % 2:
        bias = [b.weight(out)] if q % 3 else []
        y = b.op("Gemm", [x, b.weight(*w[::-1], fan=s[-1], share=q % 3 == 0), *bias], transB=1, alpha=0.5)
    else:
        y = b.op("MatMul", [x, b.weight(*w, fan=s[-1], share=q % 3 == 0)])
        if q % 4:
            y = b.op("Add", [b.weight(out), y])
    b.add(y, *s[:-1], out)
    return None


def layer_norm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    d = s[-1]
    if p % 3 == 0:
        y = b.op("LayerNormalization", [x, b.weight(d), b.weight(d)], epsilon=0.1)
    elif p % 3 == 1:  # RMS
        m = b.op("ReduceMean", [b.op("Mul", [x, x])], axes=[-1])
        r = b.op("Sqrt", [b.op("Add", [m, b.const(np.float32(0.1))])])
        y = b.op("Mul", [b.op("Div", [x, r]), b.weight(d)])
    else:
        c = b.op("Sub", [x, b.op("ReduceMean", [x], axes=[-1])])
        v = b.op("ReduceMean", [b.op("Pow", [c, b.const(np.float32(2))])], axes=[-1])
        r = b.op("Sqrt", [b.op("Add", [v, b.const(np.float32(0.1))])])
        y = b.op("Add", [b.op("Mul", [b.op("Div", [c, r]), b.weight(d)]), b.weight(d)])
    b.add(y, *s)


def attention(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """Separate or packed projections, one to three heads, grouped or shared keys, a scale read from Shape or constant."""
    heads, d, e, width = 1 + p % 3, 2 + q % 4, 1 + p % 4, s[2]
    out = 2 + (p + q) % 8

    def split(t: str, h: int, n: int) -> str:
        r = b.op("Reshape", [t, b.target(0, 0, h, n)])
        return b.op("Transpose", [r], perm=[0, 2, 1, 3])

    kind = (p // 3) % 4
    if kind == 0:  # packed, [3, H, d]
        e = d
        t = b.op("MatMul", [x, b.weight(width, 3 * heads * d, fan=width)])
        t = b.op("Reshape", [t, b.target(0, 0, 3, heads, d)])
        t = b.op("Transpose", [t], perm=[2, 0, 3, 1, 4])
        qh, kh, vh = (b.op("Gather", [t, b.const(np.array(k))], axis=0) for k in range(3))
    elif kind == 1:  # packed, Split
        t = b.op("MatMul", [x, b.weight(width, heads * (2 * d + e), fan=width)])
        parts = b.op("Split", [t, b.ints(heads * d, heads * d, heads * e)], 3, axis=-1)
        qh, kh, vh = split(parts[0], heads, d), split(parts[1], heads, d), split(parts[2], heads, e)
    else:
        kv = {2: heads, 3: 1}[kind]
        qh = split(b.op("MatMul", [x, b.weight(width, heads * d, fan=width)]), heads, d)
        kh = split(b.op("Add", [b.weight(kv * d), b.op("MatMul", [x, b.weight(width, kv * d, fan=width)])]), kv, d)
        vh = split(b.op("MatMul", [x, b.weight(width, kv * e, fan=width)]), kv, e)
        if kv == 1 and q % 2:  # repeat the keys
            kh = b.op("Expand", [kh, b.ints(1, heads, 1, 1)])
            vh = b.op("Tile", [vh, b.ints(1, heads, 1, 1)])
    if q % 2:
        size = b.op("Gather", [b.op("Shape", [qh]), b.const(np.array(3))], axis=0)
        qh = b.op("Div", [qh, b.op("Sqrt", [b.op("Cast", [size], to=TensorProto.FLOAT)])])
    a = b.op("MatMul", [qh, b.op("Transpose", [kh], perm=[0, 1, 3, 2])])
    if q % 3 == 0:
        a = b.op("Add", [a, b.weight(heads, 1, 1)])
    a = b.op("MatMul", [b.op("Softmax", [a], axis=-1), vh])
    a = b.op("Reshape", [b.op("Transpose", [a], perm=[0, 2, 1, 3]), b.target(0, 0, heads * e)])
    b.add(b.op("MatMul", [a, b.weight(heads * e, out, fan=heads * e)]), *s[:2], out)


def gated(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """A gated unit of fused halves, along the last axis of a sequence or the channels of an image."""
    inner = 2 + p % 5
    if len(s) == 4:
        t = b.op("Conv", [x, b.weight(2 * inner, s[1], 1, 1, fan=s[1])])
        axis, shape = 1, (0, inner, *s[2:])
    else:
        t = b.op("MatMul", [x, b.weight(s[-1], 2 * inner, fan=s[-1])])
        axis, shape = len(s) - 1, (*s[:-1], inner)
    if q % 2:
        u, v = b.op("Split", [t, b.ints(inner, inner)], 2, axis=axis)
    else:
        u = b.op("Slice", [t, b.ints(0), b.ints(inner), b.ints(axis)])
        v = b.op("Slice", [t, b.ints(inner), b.ints(np.iinfo(np.int64).max), b.ints(axis)])
    b.add(b.op("Mul", [u, b.op("Sigmoid", [v])]), *shape)


def to_image(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    y = b.op("Transpose", [x], perm=[0, 2, 1])
    y = b.op("Unsqueeze", [y, b.ints(-1)]) if p % 2 else b.op("Reshape", [y, b.target(0, s[2], s[1], 1)])
    b.add(y, 0, s[2], s[1], 1)


def heads_and_back(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    """A pointwise constant over heads, over offsets, or a reduction over either, in a view as heads."""
    h = divisor(s[2], p)
    d = s[2] // h
    y = b.op("Reshape", [x, b.target(0, 0, h, d)])
    if q % 4 == 3:
        b.add(b.op("ReduceSum", [y, b.ints(2 + p % 2)], keepdims=0), *s[:2], (d, h)[p % 2])
        return None
    y = b.op("Mul", [y, b.weight(*[(h, 1), (d,), (h, d)][q % 4])])
    b.add(b.op("Reshape", [y, b.target(0, 0, -1)]), *s)
    return None


def head_norm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """Every head is normalised by itself."""
    h = divisor(s[2], p)
    d = s[2] // h
    y = b.op("Reshape", [x, b.target(0, 0, h, d)])
    y = b.op("LayerNormalization", [y, b.weight(d), b.weight(d)], epsilon=0.1)
    b.add(b.op("Reshape", [y, b.target(0, 0, s[2])]), *s)


def token(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    if p % 2:
        b.add(b.op("Gather", [x, b.const(np.array(q % s[1]))], axis=1), 0, s[2])
    else:
        b.add(b.op("ReduceMean", [x], axes=[1], keepdims=0), 0, s[2])


def rows_to_sequence(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if len(s) != 2:
        return False
    if p % 2:
        b.add(b.op("Unsqueeze", [x, b.ints(1)]), 0, 1, s[1])
    else:
        n = divisor(s[1], q)
        b.add(b.op("Reshape", [x, b.target(0, n, -1)]), 0, n, s[1] // n)
    return None


def product(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """Positions against positions: both operands are activations."""
    a = b.op("MatMul", [x, b.op("Transpose", [x], perm=[0, 2, 1])])
    if p % 2:
        b.add(b.op("MatMul", [b.op("Softmax", [a], axis=-1), x]), *s)
    else:
        b.add(b.op("Tanh", [a]), 0, s[1], s[1])


def lstm(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    h, i = 2 + p % 4, s[2]
    t = b.op("Transpose", [x], perm=[1, 0, 2])
    d = 1 + q % 2
    kind, g = (("LSTM", 4), ("GRU", 3))[p % 2]
    weights = [b.weight(d, g * h, i, fan=i), b.weight(d, g * h, h, fan=h), b.weight(d, 2 * g * h)]
    y = b.op(kind, [t, *weights], hidden_size=h, direction=("forward", "bidirectional")[d - 1])
    y = b.op("Transpose", [y], perm=[2, 0, 1, 3])  # [N, S, directions, H]
    b.add(b.op("Reshape", [y, b.target(0, 0, -1)]), *s[:2], d * h)


# ---------------------------------------------------------------- any tensor


def unary(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    b.add(b.op(UNARY[p % len(UNARY)], [x]), *s)


def clip(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    b.add(b.op("Clip", [x, b.const(np.float32(0.25)), b.const(np.float32(2))]), *s)


def where(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    c = b.op("Less", [x, b.const(np.float32(0.1))])
    b.add(b.op("Where", [c, x, b.const(np.float32(-0.3))]), *s)


def with_constant(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    shapes = [s[1:], (s[1], *[1] * (len(s) - 2)), (s[-1],), (1,)]
    y = b.op(("Add", "Mul", "Sub", "Max")[q % 4], [x, b.weight(*shapes[p % 4])][:: 1 if p % 3 else -1])
    b.add(y, *s)


def with_another(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """A residual: another tensor of the same shape (or this one)."""
    others = [n for n, t in b.values if t == s]
    y = b.op(("Add", "Sub", "Add", "Mul")[q % 4], [x, others[p % len(others)]])
    b.add(b.op("Tanh", [y]) if q % 4 == 3 else y, *s)


def axis_of(s: tuple[int, ...]) -> int:
    return 1 if len(s) == 4 else len(s) - 1


def concat(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    axis = axis_of(s)
    rest = lambda t: (len(t), t[:axis], t[axis + 1 :])  # noqa: E731
    others = [(n, t) for n, t in b.values if len(t) == len(s) and rest(t) == rest(s)]
    picked = [(x, s), others[p % len(others)]] + ([others[q % len(others)]] if q % 3 == 0 else [])
    width = sum(t[axis] for _, t in picked)
    if width > MAX_WIDTH and len(s) > 2:
        return False
    y = b.op("Concat", [n for n, _ in picked], axis=axis - (len(s) if q % 2 else 0))
    b.add(y, *s[:axis], width, *s[axis + 1 :])
    return None


def split(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    axis = axis_of(s)
    if s[axis] < 2:
        return False
    first = 1 + p % (s[axis] - 1) if q % 3 else s[axis] // 2
    sizes = [first, s[axis] - first]
    for name, n in zip(b.op("Split", [x, b.ints(*sizes)], 2, axis=axis), sizes, strict=True):
        b.add(name, *s[:axis], n, *s[axis + 1 :])
    return None


def slice_(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    axis = 1 + p % (len(s) - 1)
    n = s[axis]
    start, stop = q % n, n - (p // 3) % max(1, n - q % n)
    ends = stop if p % 2 else (stop - n if stop < n else np.iinfo(np.int64).max)
    b.add(
        b.op("Slice", [x, b.ints(start - (n if q % 2 else 0)), b.ints(ends), b.ints(axis)]),
        *s[:axis],
        stop - start,
        *s[axis + 1 :],
    )


def strided(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """Every n-th position, or all of them backwards, of one axis."""
    axis = 1 + p % (len(s) - 1)
    n, step = s[axis], (2, 3, -1, -2)[q % 4]
    start, far = (q // 4 % n, n) if step > 0 else (n - 1, -n - 1)
    y = b.op("Slice", [x, b.ints(start), b.ints(far), b.ints(axis), b.ints(step)])
    b.add(y, *s[:axis], len(range(n)[slice(start, None, step)]), *s[axis + 1 :])


def gather(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """A permutation or a choice with repetitions, by constant indices."""
    axis = 1 + p % (len(s) - 1)
    n = s[axis]
    index = b.rng.permutation(n) if q % 2 else b.rng.integers(0, n, max(1, min(n, 1 + q % 8)))
    b.add(b.op("Gather", [x, b.const(index.astype(np.int64))], axis=axis), *s[:axis], len(index), *s[axis + 1 :])


def reduce(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """A statistic over one axis that meets the whole again."""
    axis = 1 + p % (len(s) - 1)
    kind = ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum")[q % 4]
    m = b.op("ReduceSum", [x, b.ints(axis)]) if kind == "ReduceSum" else b.op(kind, [x], axes=[axis])
    b.add(b.op("Tanh", [b.op("Add", [x, m])]), *s)


def softmax(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    b.add(b.op(("Softmax", "LogSoftmax")[q % 2], [x], axis=1 + p % (len(s) - 1)), *s)


def squeeze(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    axis = 1 + p % len(s)
    y = b.op("Unsqueeze", [x, b.ints(axis)])
    y = b.op("Sigmoid", [y])
    b.add(b.op("Squeeze", [y, b.ints(axis - len(s) - 1 if q % 2 else axis)]), *s)


def by_shape(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> None:
    """Flattened and brought back by its own Shape."""
    shape = b.op("Shape", [x])
    y = b.op("Reshape", [x, b.ints(-1)]) if p % 4 == 0 else b.op("Reshape", [x, b.target(0, -1)])
    b.add(b.op("Reshape", [b.op("Relu", [y]), shape]), *s)


def expand(b: Builder, x: str, s: tuple[int, ...], p: int, q: int) -> bool | None:
    if len(s) != 4 or s[2:] != (1, 1):
        return False
    y = b.op("Expand", [x, b.ints(1, s[1] if q % 2 else 1, 3, 3)]) if p % 2 else b.op("Tile", [x, b.ints(1, 1, 3, 3)])
    b.add(y, 0, s[1], 3, 3)
    return None


STEPS: dict[str, Rule] = {
    "conv": images(conv),
    "grouped": images(grouped),
    "conv_transpose": images(conv_transpose),
    "batch_norm": images(batch_norm),
    "instance_norm": images(instance_norm),
    "group_norm": images(group_norm),
    "pool": images(pool),
    "global_pool": images(global_pool),
    "resize": images(resize),
    "pad": images(pad),
    "squeeze_excite": images(squeeze_excite),
    "shuffle": images(shuffle),
    "depth_to_space": images(depth_to_space),
    "space_to_depth": images(space_to_depth),
    "prelu": images(prelu),
    "to_sequence": images(to_sequence),
    "flatten": images(flatten),
    "channels_last": images(channels_last),
    "linear": linear,
    "layer_norm": layer_norm,
    "attention": sequences(attention),
    "gated": gated,
    "to_image": sequences(to_image),
    "heads_and_back": sequences(heads_and_back),
    "head_norm": sequences(head_norm),
    "token": sequences(token),
    "rows_to_sequence": rows_to_sequence,
    "product": sequences(product),
    "recurrent": sequences(lstm),
    "unary": unary,
    "clip": clip,
    "where": where,
    "with_constant": with_constant,
    "with_another": with_another,
    "concat": concat,
    "split": split,
    "slice": slice_,
    "strided": strided,
    "gather": gather,
    "reduce": reduce,
    "softmax": softmax,
    "squeeze": squeeze,
    "by_shape": by_shape,
    "expand": expand,
}


def build(
    program: list[Step], seed: int = 0, start: str = "image", batch: int = 0, direct: bool = False
) -> onnx.ModelProto:
    """The model of a program. batch: a fixed size (which may equal a channel count), 0 for a symbolic one.

    direct: the last tensor is an output as it is, without a head.
    """
    b = Builder(seed)
    shape = {"image": (0, 3, 4, 4), "sequence": (0, 4, 6), "rows": (0, 6)}[start]
    b.add("x", *shape)
    # what comes first makes units: otherwise most programs only move the input around
    first = {"image": ("conv", 0, 6, 0), "sequence": ("linear", 0, 6, 1), "rows": ("linear", 0, 8, 1)}[start]
    for name, which, p, q in [first, *program]:
        x, s = b.values[-1 - which % len(b.values)]
        if int(np.prod([max(1, n) for n in s])) <= 1500:
            STEPS[name](b, x, s, p, q)
    read = {i for n in b.nodes for i in n.input}
    leaves = [(n, s) for n, s in b.values[1:] if n not in read]
    outputs = []
    for k, (x, s) in enumerate(leaves):
        if direct and k == len(leaves) - 1:
            outputs.append(x)
        elif len(s) == 4:
            outputs.append(b.op("Conv", [x, b.weight(2, s[1], 1, 1, fan=s[1]), b.weight(2)]))
        else:
            outputs.append(b.op("MatMul", [x, b.weight(s[-1], 2, fan=s[-1])]))
    return model(b, shape, outputs, batch)


def model(b: Builder, shape: tuple[int, ...], outputs: list[str], batch: int) -> onnx.ModelProto:
    dims = [batch or "N", *shape[1:]]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    tensors = [numpy_helper.from_array(v, n) for n, v in b.constants.items()]
    graph = helper.make_graph(
        b.nodes, "random", [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)], infos, tensors
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    known = {o.name: o for o in inferred.graph.output}
    for info in proto.graph.output:
        if known[info.name].type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.CopyFrom(known[info.name].type.tensor_type.shape)
    return proto
