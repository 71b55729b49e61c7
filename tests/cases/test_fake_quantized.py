"""Weights that are rounded to codes and back in the graph (training with quantization): they are the floats that the file stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import Budget
from tests.oracle import Array, check, net, node

MS = ', "com.microsoft" : 1'


def model(rounded: bool = True, way: str = "plain") -> onnx.ModelProto:
    """Conv, Conv, MatMul, MatMul over fake-quantized weights, or over the same weights as they are."""
    one, two = {
        "plain": ("q0 = Q<axis=1>(m, ms, mz) m1 = D<axis=1>(q0, ms, mz)", "m1"),
        "moved between": (
            "q0 = Q<axis=1>(m, ms, mz) qt = Transpose<perm=[1,0]>(q0) dt = D<axis=0>(qt, ms, mz) m1 = Transpose<perm=[1,0]>(dt)",
            "m1",
        ),
        "reshaped": ("r0 = Reshape(m, flat) q0 = Q(r0, sa, za) d0 = D(q0, sa, za) m1 = Reshape(d0, square)", "m1"),
    }[way]
    text = f"""g (float[N,3,8,8] x) => (float[N,5] y)
    <float[16,3,3,3] w, float[16] ws, int8[16] wz, float[12,16,3,3] v, uint8 za, float sa, float sv, uint8 zv,
     float[12,24] m, float[24] ms, int8[24] mz, float[24] mb, float[24,5] o, int64[1] flat, int64[2] square>
    {{
        xq = Q(x, sa, za)
        xd = D(xq, sa, za)
        wq = Q<axis=0>(w, ws, wz)
        wd = D<axis=0>(wq, ws, wz)
        c = Conv<pads=[1,1,1,1]>(xd, wd)
        r = Relu(c)
        vq = Q(v, sv, zv)
        vd = D(vq, sv, zv)
        e = Conv(r, vd)
        s = Relu(e)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        {one}
        h = MatMul(f, {two})
        b = Add(h, mb)
        k = Relu(b)
        y = MatMul(k, o)
    }}"""
    domains = MS if way == "plain" else ""
    prefix = "com.microsoft." if domains else ""
    text = text.replace("D(", "D<axis=1>(") if domains else text  # the contrib operators have no default
    text = text.replace("Q(", "Q<axis=1>(") if domains else text
    for short, name in (("Q", "QuantizeLinear"), ("D", "DequantizeLinear")):
        for end in "(<":
            text = text.replace(f" {short}{end}", f" {prefix}{name}{end}")
    constants: dict[str, Array] = {
        "ws": np.full(16, 0.01, np.float32),
        "wz": np.zeros(16, np.int8),
        "sa": np.array(0.03, np.float32),
        "za": np.array(128, np.uint8),
        "sv": np.array(0.004, np.float32),
        "zv": np.array(120, np.uint8),
        "ms": np.linspace(0.005, 0.01, 24).astype(np.float32),
        "mz": np.zeros(24, np.int8),
        "flat": np.array([-1]),
        "square": np.array([12, 24]),
    }
    made = net(text, constants=constants, domains=domains)
    if not rounded:
        graph = made.graph
        for name in ("wd", "vd", "m1"):
            where = {"wd": "w", "vd": "v", "m1": "m"}[name]
            for reader in graph.node:
                reader.input[:] = [where if i == name else i for i in reader.input]
        for _ in range(4):
            read = {i for n in graph.node for i in n.input} | {"y"}
            for n in [n for n in graph.node if not any(o in read for o in n.output)]:
                graph.node.remove(n)
    return made


WAYS = ["plain", "moved between", "reshaped"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(48, 3, 8, 8)).astype(np.float32))
    return str(tmp_path / "x.npz")


def values(of: onnx.ModelProto, name: str) -> Array:
    return np.asarray(numpy_helper.to_array(next(t for t in of.graph.initializer if t.name == name)))


@pytest.mark.parametrize("way", WAYS)
def test_the_groups_are_those_of_the_float_model(way: str) -> None:
    def listed(of: onnx.ModelProto) -> list[tuple[int, int]]:
        return sorted((g["units"], g["removable"]) for g in onnxprune.inspect(of)["groups"])

    if way == "reshaped":
        assert listed(model(way=way)) == listed(model(False, way))
        return
    check(model(way=way), units=[24, 16, 12])
    assert listed(model(way=way)) == listed(model(False, way)) == [(5, 0), (12, 11), (16, 15), (24, 23)]


@pytest.mark.parametrize("way", WAYS)
def test_they_become_sparse_where_they_are_stored(way: str, data: str) -> None:
    original = model(way=way)
    for options in ({}, {"criterion": "magnitude"}):
        made = onnxprune.sparsify(original, sparsity=0.5, data=data, benchmark=False, **options)
        assert {x.tensor: x.zeros.after for x in made.report.layers} == {"w": 216, "v": 864, "m": 144, "o": 60}
        assert not made.report.left_alone
        assert [n.op_type for n in made.model.graph.node] == [n.op_type for n in original.graph.node]


@pytest.mark.parametrize("way", WAYS)
def test_layers_are_fitted_and_stay_rounded(way: str, data: str, tmp_path: Path) -> None:
    original = model(way=way)
    plan = tmp_path / "plan.json"
    made = onnxprune.prune(
        original, Budget("macs", 0.5), data=data, plan=plan, round_to=1, benchmark=False, mix=False, samples=48
    )
    repair = made.report.repair
    assert repair is not None and {f.layer for f in repair.fits} == {"c", "e", "h", "y"}
    assert repair.damage.after is not None and repair.damage.before is not None
    assert repair.damage.after < repair.damage.before
    written = {"plain": ("q0", 0), "moved between": ("q0", 0), "reshaped": ("r0", 0)}[way]
    assert {("vq", 0), written} <= {tuple(place) for place in made.plan.refit}, "in front of the rounding"
    kinds = [n.op_type for n in made.model.graph.node]
    assert kinds.count("DequantizeLinear") == [n.op_type for n in original.graph.node].count("DequantizeLinear")
    assert values(made.model, "v").dtype == np.float32
    onnxprune.verify(original, made.model, plan, data=data)
    assert not any("integer codes" in w for w in made.report.warnings)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_pass_the_rounding(way: str, data: str) -> None:
    pytest.importorskip("torch")
    original = model(way=way)
    made = onnxprune.prune(original, Budget("ratio", 0.4), round_to=1, recover="none", benchmark=False)
    tuned = onnxprune.finetune(made.model, original, data=data, steps=30, threads=1)
    assert all((values(tuned.model, n) != values(made.model, n)).any() for n in ("w", "v", "m", "o"))
    assert values(tuned.model, "ws").shape == values(made.model, "ws").shape
    assert node(tuned.model, "QuantizeLinear").output[0] == "xq"
