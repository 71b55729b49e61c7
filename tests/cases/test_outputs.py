"""Outputs that are no tensors, or not finite: every one is compared, and judged by where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import Budget, VerificationError
from onnxprune.calibrate.damage import divergence
from onnxprune.proof.compare import error, not_compared
from onnxprune.runtime.values import as_array
from tests.oracle import net

ML = ', "ai.onnx.ml" : 2'
BODY = """
    c = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = Gemm(f, v, b)
    k = Relu(h)
    score = Gemm(k, s)
"""
WEIGHTS = "float[16,3,3,3] w, float[16,12] v, float[12] b, float[12,2] s"
SEQUENCE = f"""g (float[N,3,8,8] x) => (float[N,2] score, seq(float[]) levels)
    <{WEIGHTS}, float[12,4] only, int64 at, int64[2] parts> {{ {BODY}
    o = MatMul(k, only)
    levels = SplitToSequence<axis=1>(o, parts)
}}"""
MAP = f"""g (float[N,3,8,8] x) => (float[N,2] score, seq(map(int64, float)) levels)
    <{WEIGHTS}, float[12,4] only> {{ {BODY}
    o = MatMul(k, only)
    q = Softmax<axis=1>(o)
    levels = ai.onnx.ml.ZipMap<classlabels_int64s=[3,1,4,5]>(q)
}}"""
TEXT = f"""g (float[N,3,8,8] x) => (float[N,2] score, string[N] levels)
    <{WEIGHTS}, float[12,4] only> {{ {BODY}
    o = MatMul(k, only)
    i = ArgMax<axis=1,keepdims=0>(o)
    levels = ai.onnx.ml.LabelEncoder<keys_int64s=[0,1,2,3],values_strings=["a","b","c","d"]>(i)
}}"""
CONSTANTS = {"at": np.array(1), "parts": np.array([1, 3])}


def case(text: str) -> onnx.ModelProto:
    constants = CONSTANTS if "parts" in text else None
    return net(text, domains=ML if "ai.onnx.ml" in text else "", constants=constants)


def tampered(model: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for k, tensor in enumerate(copy.graph.initializer):
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array[:, 1:] = value
            array[:, 0] = -value
            copy.graph.initializer[k].CopyFrom(numpy_helper.from_array(array, name))
            return copy
    raise AssertionError(name)


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(3).normal(size=(32, 3, 8, 8)).astype(np.float32))
    return str(tmp_path / "x.npz")


@pytest.mark.parametrize("text", [SEQUENCE, MAP, TEXT], ids=["sequence", "map", "text"])
def test_a_tampered_weight_is_seen_at_every_kind_of_output(text: str, data: str, tmp_path: Path) -> None:
    model = case(text)
    plan = tmp_path / "plan.json"
    result = onnxprune.prune(model, Budget("ratio", 0.5), plan=plan, recover="none", round_to=1, benchmark=False)
    assert onnxprune.verify(model, result.model, plan, data=data).not_compared == ()
    with pytest.raises(VerificationError, match="differs from the masked original"):
        onnxprune.verify(model, tampered(result.model, "only", -3.0), plan, data=data)


@pytest.mark.parametrize("text", [SEQUENCE, MAP], ids=["sequence", "map"])
def test_sequences_and_maps_are_judged_by(text: str, data: str) -> None:
    model = case(text)
    del model.graph.output[0]  # nothing else is left to judge by
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False)
    repair = result.report.repair
    assert repair is not None and repair.damage is not None
    assert 0 < repair.damage.after < repair.damage.before < np.inf
    made = onnxprune.sparsify(model, sparsity=0.5, data=data, benchmark=False)
    assert np.isfinite(made.report.difference.divergence)


def test_values_of_every_kind_as_arrays() -> None:
    maps = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]
    assert as_array(maps).tolist() == [[1, 2], [3, 4]]
    assert as_array([np.ones((2, 3)), np.zeros((2, 3))]).shape == (2, 2, 3)
    uneven = as_array([np.ones(2), np.full((1, 3), 5.0)])
    assert uneven.ndim == 1 and set(uneven.tolist()) >= {1, 5}
    assert as_array(np.array(["x"], object)).size == 0


@pytest.mark.parametrize(
    ("a", "b", "differs"),
    [
        ([np.ones(2)], [np.ones(2)], False),
        ([np.ones(2)], [np.ones(2), np.ones(2)], True),
        ([{"a": 1.0}], [{"b": 1.0}], True),
        ([{"a": 1.0}], [{"a": 2.0}], True),
        (np.array(["x", "y"], object), np.array(["x", "y"], object), False),
        (np.array(["x", "y"], object), np.array(["x", "z"], object), True),
        (np.zeros((0, 3)), np.zeros((0, 4)), True),
        (np.array([np.inf, 1]), np.array([np.inf, 1]), False),
        (np.array([np.inf, 1]), np.array([-np.inf, 1]), True),
        (np.array([np.nan, 1]), np.array([np.nan, 1]), False),
        (np.array([np.nan, 1]), np.array([np.inf, 1]), True),
        (np.array([1 + 1j]), np.array([1 - 1j]), True),
        (None, None, False),
        (None, np.ones(1), True),
    ],
)
def test_what_counts_as_different(a: Any, b: Any, differs: bool) -> None:
    assert (error([a], [b]) > 0) == differs


def test_what_cannot_be_compared_is_named() -> None:
    assert not_compared([np.ones(1), object(), np.zeros((0, 2))], ["a", "b", "c"]) == ["b", "c"]


def test_infinities_that_stay_are_no_damage() -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(8, 5)).astype(np.float32) for _ in range(4)]
    near = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in logits]
    masks = [rng.random(x.shape) < 0.3 for x in logits]
    masked, too = (
        [[np.where(m, v, x).astype(np.float32)] for x, m in zip(near, masks, strict=True)] for v in (-np.inf, -1e4)
    )
    wanted, also = (
        [[np.where(m, v, x).astype(np.float32)] for x, m in zip(logits, masks, strict=True)] for v in (-np.inf, -1e4)
    )
    found = divergence(wanted, masked)
    assert 0 < found < 1 and divergence(wanted, wanted) == 0
    assert found == pytest.approx(divergence(also, too), rel=0.5)
    assert divergence(wanted, [[np.where(m, 0, x[0])] for x, m in zip(masked, masks, strict=True)]) == np.inf


@pytest.mark.parametrize("text", [SEQUENCE, MAP], ids=["sequence", "map"])
def test_what_sequences_and_maps_are_made_of_is_learned_from(text: str, data: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = case(text)
    del model.graph.output[0]
    small = onnxprune.prune(model, Budget("macs", 0.4), recover="none", round_to=1, benchmark=False).model
    tuned = onnxprune.finetune(small, model, data=data, steps=40, batch=8, augment=False)
    assert tuned.is_improved and {f.key for f in tuned.frozen} == {"s"}  # of the output that was left out


def test_masked_outputs_warn_of_nothing(tmp_path: Path) -> None:
    text = """g (float[N,6] x, bool[N,5] legal) => (float[N,5] logits) <float[6,16] w, float[16,5] v, float low> {
        h = MatMul(x, w)
        r = Relu(h)
        o = MatMul(r, v)
        logits = Where(legal, o, low)
    }"""
    model = net(text, constants={"low": np.array(-np.inf, np.float32)})
    rng = np.random.default_rng(0)
    legal = rng.random((32, 5)) < 0.7
    legal[:, 0] = True
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(32, 6)).astype(np.float32), legal=legal)
    data = str(tmp_path / "x.npz")
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False)
    assert result.report.repair is not None and np.isfinite(result.report.repair.damage.after or np.nan)
    assert np.isfinite(onnxprune.sparsify(model, sparsity=0.5, data=data, benchmark=False).report.difference.divergence)
