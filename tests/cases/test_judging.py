"""By what tensors a model is judged when its outputs say little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, cli
from onnxprune.calibrate.judging import judged_by
from onnxprune.model.loaded import Model
from tests.oracle import net

DETECTOR = """g (float[N,3,8,8] x) => (float[K,5] dets, int64[K] kept)
    <float[16,3,3,3] w, float[16] b, float[8,16,3,3] u, float[4,8,1,1] to_boxes, float[3,8,1,1] to_scores,
     int64[1] most, float[1] overlap, float[1] least, int64[3] flat, int64[1] zero, int64[1] one, int64[1] two> {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, u)
    e = Relu(d)
    raw_boxes = Conv(e, to_boxes)
    raw_scores = Conv(e, to_scores)
    four = Reshape(raw_boxes, flat)
    boxes = Transpose<perm=[0,2,1]>(four)
    three = Reshape(raw_scores, flat)
    scores = Sigmoid(three)
    sel = NonMaxSuppression(boxes, scores, most, overlap, least)
    column = Slice(sel, two, flat_end, one)
    kept = Squeeze(column, one)
    boxes_of_one = Slice(boxes, zero, one, zero)
    first = Squeeze(boxes_of_one, zero)
    chosen = Gather<axis=0>(first, kept)
    best = ReduceMax<axes=[1],keepdims=1>(scores)
    best_one = Slice(best, zero, one, zero)
    flat_best = Reshape(best_one, column_shape)
    score = Gather<axis=0>(flat_best, kept)
    dets = Concat<axis=1>(chosen, score)
}"""
VALUES = {
    "most": np.array([20]),
    "overlap": np.array([0.5], np.float32),
    "least": np.array([0.1], np.float32),
    "flat": np.array([0, 0, -1]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "flat_end": np.array([3]),
    "column_shape": np.array([-1, 1]),
}
LABELS = """g (float[N,3,8,8] x) => (int64[N] label)
    <float[16,3,3,3] w, float[16] b, float[16,12] u, float[12,5] v> {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = MatMul(f, u)
    k = Relu(h)
    logits = MatMul(k, v)
    label = ArgMax<axis=1,keepdims=0>(logits)
}"""


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(3).normal(size=(32, 3, 8, 8)).astype(np.float32))
    return str(tmp_path / "x.npz")


def of(model: onnx.ModelProto) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    found = judged_by(Model(model, None), lambda name: True)
    return found.tensors, {o: by for o, (_, by) in found.follows.items()}


def test_a_detector_is_judged_before_boxes_are_selected(data: str, tmp_path: Path) -> None:
    model = net(DETECTOR, constants=VALUES)
    assert of(model) == (("boxes", "scores"), {"dets": ("boxes", "scores"), "kept": ("boxes", "scores")})
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False)
    calibration, repair = result.report.calibration, result.report.repair
    assert calibration is not None and repair is not None and repair.damage is not None
    assert calibration.judged_by == ("boxes", "scores")
    assert all("NonMaxSuppression 'sel'" in x.reason for x in calibration.not_judged)
    assert repair.fitted > 0 and 0 < repair.damage.after < repair.damage.before < np.inf
    made = onnxprune.sparsify(model, sparsity=0.5, data=data, benchmark=False)
    assert np.isfinite(made.report.difference.divergence)


def test_labels_are_judged_by_what_they_are_made_of(data: str) -> None:
    model = net(LABELS)
    assert of(model) == (("logits",), {"label": ("logits",)})
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False)
    repair = result.report.repair
    assert repair is not None and repair.damage is not None and repair.damage.before > 0


def test_labels_of_nothing_else_are_compared_themselves() -> None:
    model = net("g (int64[N,4] x) => (int64[N,4] y) <int64[4,4] w> { y = MatMul(x, w) }")
    assert of(model) == (("y",), {})


def test_judged_by_what_the_user_names(data: str) -> None:
    model = net(LABELS)
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False, judge="logits")
    assert result.report.calibration is not None and result.report.calibration.judged_by == ("logits",)
    for name, why in (("nothing", "no tensor that a node"), ("r", "loses positions")):
        with pytest.raises(BadInputError, match=why):
            onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False, judge=name)


def test_the_console_says_what_a_model_was_judged_by(data: str, tmp_path: Path) -> None:
    onnx.save(net(LABELS), tmp_path / "m.onnx")
    words = ["prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--macs", "0.5", "--data", data]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    assert "judged by: 'logits'; 'label' follows from 'logits', as it holds no floats (tensor(int64))" in result.stdout


def test_sizes_that_follow_from_sizes_are_no_reason() -> None:
    text = """g (float[N,4,H,W] x) => (float[N,4,A,B] y) <float[4,4,1,1] w> {
        c = Conv(x, w)
        s = Shape(c)
        z = Resize(c,,, s)
        y = Relu(z)
    }"""
    model = net(text)
    assert of(model) == (("y",), {})


def test_a_length_that_follows_from_values_is_named() -> None:
    text = """g (float[N,8] x) => (float[L] y) <float[8,1] w, int64 start, int64 step> {
        d = MatMul(x, w)
        t = ReduceSum<keepdims=0>(d)
        e = Exp(t)
        n = Cast<to=7>(e)
        r = Range(start, n, step)
        y = Cast<to=1>(r)
    }"""
    model = net(text, constants={"start": np.array(0), "step": np.array(1)})
    found = judged_by(Model(model, None), lambda name: True)
    assert found.tensors == ("e",) and "Range" in found.follows["y"][0]


def test_parts_of_a_sequence_at_constant_places_are_judged_directly() -> None:
    text = """g (float[N,8] x) => (float[N,2] y) <float[8,4] w, int64 at, int64[2] parts> {
        h = MatMul(x, w)
        s = SplitToSequence<axis=1>(h, parts)
        y = SequenceAt(s, at)
    }"""
    model = net(text, constants={"at": np.array(1), "parts": np.array([2, 2])})
    assert of(model) == (("y",), {})


def test_a_score_of_the_users_gets_the_outputs_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LABELS.replace("int64[N] label", "int64[N] label, string[N] word").replace(
        "(logits)\n}",
        """(logits)
        word = ai.onnx.ml.LabelEncoder<keys_int64s=[0,1,2,3,4],values_strings=["a","b","c","d","e"]>(label)
    }""",
    )
    model = net(text, domains=', "ai.onnx.ml" : 2')
    (tmp_path / "own_score.py").write_text(
        "def score(outputs, data):\n"
        "    assert sorted(outputs) == ['label', 'word'] and set(outputs['word']) <= set('abcde')\n"
        "    return float((outputs['label'] == data['labels']).mean())\n"
    )
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(32, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 32)
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    own = {"data": str(tmp_path / "x.npz"), "metric": "own_score:score"}
    result = onnxprune.prune(model, Budget("max_drop", 1.0), round_to=1, benchmark=False, **own)
    assert result.report.drop is not None
    pytest.importorskip("torch")
    assert onnxprune.finetune(result.model, model, steps=4, batch=8, augment=False, **own).is_scored
