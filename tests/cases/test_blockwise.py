"""Weights of few bits with a scale per block: whole blocks go, with their scales and zero points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.ops.fused import block_linear
from onnxprune.ops.linear import Blocks, LinearContext
from tests.oracle import Array, attribute, check, deviation, dims, feeds, masked, net, node, pins, prune, reach, session

MS = ', "com.microsoft" : 1'


def table(rng: Any, shape: tuple[int, ...], kind: str) -> Array:
    low, high = (-8, 8) if kind == "int4" else (0, 16)
    return rng.integers(low, high, shape).astype(getattr(ml_dtypes, kind) if kind in ("int4", "uint4") else kind)


def dequantized(kind: str = "int4", axis: int = 0, zero: bool = False, size: int = 16) -> onnx.ModelProto:
    """Two products of 64 and 96 inputs, with blocks along the inputs (axis 0) or the outputs (axis 1) of the weights."""
    rng = np.random.default_rng(0)
    shapes = {"p": (64, 96), "q": (96, 64)}
    constants: dict[str, Array] = {}
    text = ""
    for name, shape in shapes.items():
        scales = tuple(n // size if a == axis else n for a, n in enumerate(shape))
        constants[name] = table(rng, shape, kind)
        constants[f"{name}s"] = rng.uniform(0.01, 0.03, scales).astype(np.float32)
        if zero:
            constants[f"{name}z"] = table(rng, scales, kind)
        more = f", {name}z" if zero else ""
        text += f"{name}d = DequantizeLinear<axis={axis}, block_size={size}>({name}, {name}s{more})\n"
    return net(
        f"""g (float[B,S,6] x) => (float[B,S,5] y) <float[6,64] e, float[64,5] o> {{
            {text}
            h = MatMul(x, e)
            r = Relu(h)
            f = MatMul(r, pd)
            g = Relu(f)
            k = MatMul(g, qd)
            s = Add(k, r)
            y = MatMul(s, o)
        }}""",
        opset=21,
        constants=constants,
    )


def exact(original: onnx.ModelProto, units: list[int]) -> onnxprune.PruneResult:
    """As `check`, but without ONNX Runtime's optimizer, which rounds activations to 8 bits in front of such products."""
    assert reach(original) == (units, [])
    for seed, ratio in enumerate((0.3, 0.5, 0.8)):
        made = prune(original, ratio, seed)
        assert any(g.removed for g in made.plan.groups)
        example = feeds(original, 0)
        reference = session(masked(original, made.plan, example))
        for k, sizes in enumerate([(2, 3), (1, 4)]):
            given = feeds(original, k, sizes)
            assert deviation(reference.run(None, given), session(made.model).run(None, given)) <= 1e-5
    return made


@pytest.mark.parametrize("kind", ["int4", "uint4", "uint8"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zero", [False, True])
def test_whole_blocks_of_dequantized_weights_go(kind: str, axis: int, zero: bool) -> None:
    original = dequantized(kind, axis, zero)
    exact(original, [6, 4])
    made = prune(original, 0.5)
    assert dims(made.model, "p") == [32, 48] and dims(made.model, "q") == [48, 32]
    assert dims(made.model, "ps") == ([2, 48] if axis == 0 else [32, 3])


def test_a_last_block_that_is_not_whole_is_named() -> None:
    original = dequantized(size=16)
    for k, n in enumerate(original.graph.node):
        if n.op_type == "DequantizeLinear" and n.output[0] == "pd":
            original.graph.node[k].attribute[1].i = 40
    for tensor in original.graph.initializer:
        if tensor.name == "ps":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((2, 96), 0.02, np.float32), "ps"))
    exact(original, [6])
    assert "quantizes blocks of 40 along axis 0 (of 64)" in pins(original)


def test_layers_of_blocks_are_fitted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(40, 3, 6)).astype(np.float32))
    data = str(tmp_path / "x.npz")
    original = dequantized(zero=True)
    made = onnxprune.prune(original, Budget("ratio", 0.5), data=data, round_to=1, benchmark=False)
    repair = made.report.repair
    assert repair is not None and {f.layer for f in repair.fits} == {"h", "f", "k", "y"}
    assert repair.damage.after is not None and repair.damage.before is not None
    assert repair.damage.after < repair.damage.before


def n_bits(zero: bool, flat: bool, size: int = 16) -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    constants: dict[str, Array] = {}
    for name, n, k in (("p", 96, 64), ("q", 64, 96)):
        blocks = k // size
        constants[name] = rng.integers(0, 256, (n, blocks, size // 2)).astype(np.uint8)
        constants[f"{name}s"] = rng.uniform(0.01, 0.03, (n * blocks,) if flat else (n, blocks)).astype(np.float32)
        if zero:
            constants[f"{name}z"] = rng.integers(0, 256, (n * blocks // 2,) if flat else (n, blocks // 2)).astype(
                np.uint8
            )
    more = [f", {x}z" if zero else "" for x in "pq"]
    return net(
        f"""g (float[B,S,6] x) => (float[B,S,5] y) <float[6,64] e, float[64,5] o> {{
            h = MatMul(x, e)
            r = Relu(h)
            f = com.microsoft.MatMulNBits<K=64, N=96, bits=4, block_size={size}>(r, p, ps{more[0]})
            g = Relu(f)
            k = com.microsoft.MatMulNBits<K=96, N=64, bits=4, block_size={size}>(g, q, qs{more[1]})
            s = Add(k, r)
            y = MatMul(s, o)
        }}""",
        domains=MS,
        constants=constants,
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_whole_blocks_of_matmul_n_bits_go(zero: bool, flat: bool) -> None:
    """Two zero points share a byte, so their blocks go together."""
    original = n_bits(zero, flat)
    check(original, [3, 2] if zero else [6, 4], ratios=(0.5, 0.8))
    made = prune(original, 0.5)
    attributes = [attribute(node(made.model, "MatMulNBits", k), x) for k in (0, 1) for x in "KN"]
    assert attributes == ([32, 64, 64, 32] if zero else [32, 48, 48, 32])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_layers_of_matmul_n_bits_are_fitted(tmp_path: Path, zero: bool, flat: bool) -> None:
    """What is fitted is written back as codes of the same scales and zero points, nearer to the original than those that were cut."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(40, 3, 6)).astype(np.float32))
    data = str(tmp_path / "x.npz")
    original = n_bits(zero, flat)
    made = onnxprune.prune(original, Budget("ratio", 0.5), data=data, round_to=1, benchmark=False)
    cut = onnxprune.prune(original, apply=made.plan, recover="none", benchmark=False)
    repair = made.report.repair
    assert repair is not None and {f.layer for f in repair.fits} == {"h", "f", "k", "y"}
    fits = {f.layer: f.error for f in repair.fits}
    assert fits["f"].after < 0.5 * fits["f"].before and fits["k"].after < 0.6 * fits["k"].before
    assert repair.damage.before is not None and repair.damage.after is not None
    assert repair.damage.after < 0.1 * repair.damage.before
    fitted, sliced = ({t.name: onnx.numpy_helper.to_array(t) for t in m.model.graph.initializer} for m in (made, cut))
    for name in ("p", "q"):
        assert fitted[name].dtype == np.uint8 and (fitted[name] != sliced[name]).any()
    for name in ("ps", "qs", *(("pz", "qz") if zero else ())):
        assert np.array_equal(fitted[name], sliced[name])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_decoded_as_the_node_does(bits: int) -> None:
    """A last block that is not whole, zero points packed: matrix(codes) is what the node multiplies by, and kernel(matrix) the codes."""
    rng = np.random.default_rng(bits)
    n, k, size = 6, 40, 16
    codes, row = rng.integers(0, 256, (n, 3, size * bits // 8)).astype(np.uint8), -(-3 * bits // 8)
    constants: dict[str, Array] = {
        "b": codes,
        "s": rng.uniform(0.1, 0.3, (n, 3)).astype(np.float32),
        "z": rng.integers(0, 256, (n, row)).astype(np.uint8),
        "c": rng.standard_normal(n).astype(np.float32),
    }
    original = net(
        f"""g (float[M,{k}] x) => (float[M,{n}] y) {{
            y = com.microsoft.MatMulNBits<K={k}, N={n}, bits={bits}, block_size={size}>(x, b, s, z, , c)
        }}""",
        domains=MS,
        constants=constants,
    )
    names = list(node(original, "MatMulNBits").input)
    shapes = tuple((2, k) if x == "x" else constants[x].shape if x else None for x in names)
    attrs = {"K": k, "N": n, "bits": bits, "block_size": size}
    context = LinearContext(attrs, shapes, tuple(x in constants for x in names), lambda i: constants.get(names[i]))
    linear = block_linear(context)
    assert isinstance(linear, Blocks) and linear.b == 5
    x = rng.standard_normal((4, k)).astype(np.float32)
    matrix = linear.matrix(codes.astype(np.float64))
    wanted = (x @ matrix[0] + constants["c"]).astype(np.float32)
    assert deviation([wanted], session(original).run(None, {"x": x})) < 1e-5
    again = linear.kernel(matrix)
    assert again.shape == codes.shape and again.dtype == np.uint8
    assert np.array_equal(linear.matrix(again), matrix)  # codes of the last block's padding say nothing


def test_odd_blocks_that_share_bytes_of_zero_points_are_named() -> None:
    original = n_bits(True, False, 32)  # of the second layer, three blocks
    original.graph.initializer.remove(next(t for t in original.graph.initializer if t.name == "qz"))
    zeros = np.random.default_rng(0).integers(0, 256, (64, 2)).astype(np.uint8)
    original.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "qz"))
    assert "in blocks of 64 along the contracted axis (of 96)" in pins(original)


@pytest.mark.parametrize("zero", [False, True])
def test_whole_blocks_of_an_embedding_go(zero: bool) -> None:
    rng = np.random.default_rng(3)
    constants = {
        "t": rng.integers(0, 256, (12, 32)).astype(np.uint8),
        "ts": rng.uniform(0.01, 0.03, (12, 4)).astype(np.float32),
        "tz": rng.integers(0, 256, (12, 2)).astype(np.uint8),
    }
    if not zero:
        del constants["tz"]
    original = net(
        f"""g (int64[N,3] i) => (float[N,3,5] y) <float[64,5] o> {{
            e = com.microsoft.GatherBlockQuantized<gather_axis=0, quantize_axis=1, block_size=16, bits=4>(t, i, ts{", tz" * zero})
            y = MatMul(e, o)
        }}""",
        domains=MS,
        constants=constants,
    )
    check(original, [2] if zero else [4], ratios=(0.5, 0.8))
