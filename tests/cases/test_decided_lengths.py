"""Predicted durations set the number of frames, and a decoder with weights follows: a voice, small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.damage import angle, disagreement
from onnxprune.calibrate.judging import judged_by
from onnxprune.choose.channels import calibrated
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import FEW, LEAST, LEVELS, affordable, work
from onnxprune.clock import Clock, silent
from onnxprune.model.branches import making, showing
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.report.lines import difference_line, repair_lines
from onnxprune.runtime import Session
from tests.oracle import net

VOICE = """g (int64[1,L] ids) => (float[1,T,8] wave)
    <float[40,16] table, float[16,32] e, float[32,16] f, float[16,24] p, float[24,1] q, float[16,48] d, float[48,48] k, float[48,8] o,
     int64[1] last, int64[1] one, int64 zero, int64 unit, int64[2] ends, float low, float high> {
    h0 = Gather(table, ids)
    h1 = MatMul(h0, e)
    h2 = Relu(h1)
    h = MatMul(h2, f)
    s1 = MatMul(h, p)
    s2 = Relu(s1)
    s3 = MatMul(s2, q)
    s4 = Sigmoid(s3)
    s5 = Mul(s4, high)
    durations = Add(s5, low)
    whole = Ceil(durations)
    flat = Squeeze(whole, last)
    ending = CumSum(flat, one0)
    total = ReduceMax<keepdims=0>(ending)
    count = Cast<to=7>(total)
    frames = Range(zero, count, unit)
    real = Cast<to=1>(frames)
    column = Unsqueeze(real, one)
    starting = Sub(ending, flat)
    before = Less(column, ending)
    early = Less(column, starting)
    after = Not(early)
    both = And(before, after)
    path2 = Cast<to=1>(both)
    path = Unsqueeze(path2, first)
    spread = MatMul(path, h)
    d1 = MatMul(spread, d)
    d2 = Relu(d1)
    d3 = MatMul(d2, k)
    d4 = Relu(d3)
    wave = MatMul(d4, o)
}"""
VALUES = {
    "last": [-1],
    "one": [1],
    "first": [0],
    "zero": 0,
    "unit": 1,
    "ends": [0, 0],
    "one0": 1,
    "low": np.float32(0.5),
    "high": np.float32(4),
}


def made(**other: float) -> onnx.ModelProto:
    text = VOICE.replace("int64[2] ends, ", "int64[1] first, int64 one0, ")
    values = {**VALUES, **{k: np.float32(v) for k, v in other.items()}}
    return net(text, constants={k: np.asarray(v) for k, v in values.items() if k != "ends"}, seed=1)


@pytest.fixture(scope="module")
def voice() -> onnx.ModelProto:
    return made()


@pytest.fixture(scope="module")
def lively() -> onnx.ModelProto:
    """One whose durations differ."""
    return made(low=-196, high=400)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for k in range(24):
        np.savez(tmp_path / f"{k:02}.npz", ids=rng.integers(0, 40, (1, int(rng.integers(8, 20)))))
    return str(tmp_path)


def test_the_original_decides_the_lengths(voice: onnx.ModelProto) -> None:
    found = judged_by(Model(voice, None), lambda name: True, leads=True)
    assert found.tensors == ("wave", "durations") and not found.follows
    assert [(d.tensor, d.node, d.sources) for d in found.decisions] == [("whole", "Range 'frames'", ("durations",))]
    plain = judged_by(Model(voice, None), lambda name: True)
    assert "wave" not in plain.tensors and plain.leader is None


@pytest.mark.parametrize("with_data", [True, False], ids=["data", "made up"])
def test_all_parts_of_a_voice_are_cut_and_repaired(voice: onnx.ModelProto, data: str, with_data: bool) -> None:
    given = {"data": data} if with_data else {"input_shapes": {"ids": (1, 12)}}
    result = onnxprune.prune(voice, Budget("macs", 0.6), round_to=1, benchmark=False, **given)
    report = result.report
    assert report.calibration is not None and report.repair is not None
    assert report.calibration.judged_by == ("wave", "durations")
    assert [(d.node, d.tensor) for d in report.calibration.decided] == [("Range 'frames'", "whole")]
    before, after = report.repair.damage.before, report.repair.damage.after
    assert before is not None and after is not None and 0 < after < before < np.inf
    assert "wave" in {f.layer for f in report.repair.fits if f.ridge is not None} and not report.repair.unpaired
    lost = {m.tensor for g in result.plan.groups if g.removed for m in g.members}
    assert {"e", "d", "k"} & lost
    onnxprune.verify(voice, result.model, result.plan)


def test_the_console_names_the_node_that_decides(voice: onnx.ModelProto, data: str) -> None:
    report = onnxprune.prune(voice, Budget("macs", 0.6), round_to=1, benchmark=False, data=data).report
    assert (
        "Range 'frames' makes as many as values say: where the models are compared, the original's values of 'whole' are taken by both"
        in repair_lines(report)
    )


def test_a_voice_is_made_sparse(voice: onnx.ModelProto, data: str) -> None:
    report = onnxprune.sparsify(voice, sparsity=0.5, data=data, benchmark=False).report
    assert 0 < report.difference.divergence < np.inf
    assert [(d.node, d.tensor) for d in report.difference.decided] == [("Range 'frames'", "whole")]
    assert "; Range 'frames' makes as many as values say" in difference_line(report)


def test_a_quantized_model_that_decides_other_lengths_is_reported(voice: onnx.ModelProto, data: str) -> None:
    """What is made of the original's decision goes through 8 bits and rounds to another number of frames: no row has its like."""
    result = onnxprune.prune(voice, Budget("macs", 0.6), data=data, then_quantize="int8", metric="cosine")
    found = {v.name: v for v in result.report.variants}
    assert found["pruned"].top1 is not None and found["pruned"].top1 < 0.1
    assert found["quantized"].divergence == found["quantized"].loss == float("inf")
    assert found["quantized"].top1 is not None and 0 < found["quantized"].top1 <= 1


def test_outputs_of_another_size_are_other_answers() -> None:
    wanted, longer = [[np.eye(3, dtype=np.float32)]] * 2, [[np.eye(4, 3, dtype=np.float32)]]
    assert disagreement(wanted, [wanted[0], *longer]) == 0.5
    assert angle(wanted, [wanted[0], *longer]) == float("inf")


def test_the_teacher_decides_the_lengths_in_fine_tuning(lively: onnx.ModelProto, data: str) -> None:
    """Without its decisions, no frame of the student has its like, and only what comes before the lengths could be learned from."""
    pytest.importorskip("torch")
    small = onnxprune.prune(
        lively, Budget("macs", 0.4), round_to=1, benchmark=False, data=data, recover="none", importance="l2"
    ).model
    rng = np.random.default_rng(1)
    many = [{"ids": rng.integers(0, 40, (1, 16))} for _ in range(20)]
    lengths = [[Session(Model(m)).run(f)[0].shape[1] for f in many] for m in (lively, small)]
    assert lengths[0] != lengths[1]
    tuned = onnxprune.finetune(small, lively, data=data, steps=60, batch=4, threads=1)
    assert tuned.judged_by == ("wave", "durations") and not tuned.not_judged and not tuned.frozen
    assert [(d.node, d.tensor) for d in tuned.decided] == [("Range 'frames'", "whole")]
    assert tuned.trained.after < 0.7 * tuned.trained.before < np.inf
    said = dict(tuned.lines())
    assert said["decided"].startswith("Range 'frames' makes as many as values say") and "judged" not in said
    judged = judged_by(Model(lively), lambda name: True, leads=True)
    feeds = {"ids": np.arange(5, 17)[None]}
    wanted, before, after = (judged.session(Model(m))(feeds) for m in (lively, small, tuned.model))
    for a, b, c in zip(wanted, before, after, strict=True):
        assert np.square(c - a).mean() < np.square(b - a).mean()


def test_fine_tuning_says_what_is_not_compared(voice: onnx.ModelProto, data: str) -> None:
    """An output of labels is judged by what it follows from, and the console says so."""
    pytest.importorskip("torch")
    labelled = onnx.ModelProto()
    labelled.CopyFrom(voice)
    labelled.graph.node.append(onnx.helper.make_node("ArgMax", ["wave"], ["best"], axis=-1, keepdims=0))
    labelled.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, [1, "T"]))
    tuned = onnxprune.finetune(labelled, labelled, data=data, steps=2, batch=4, threads=1)
    assert tuned.judged_by == ("wave", "durations")
    assert dict(tuned.lines())["judged"].startswith("by: 'wave', 'durations'; 'best' follows from 'wave'")


def test_only_what_decides_runs_to_decide(voice: onnx.ModelProto) -> None:
    part = making(voice, ["whole"])
    assert [o.name for o in part.graph.output] == ["whole"] and len(part.graph.node) == 11
    assert {t.name for t in part.graph.initializer} == {"table", "e", "f", "p", "q", "high", "low"}
    feeds = {"ids": np.arange(12)[None]}
    assert np.array_equal(Session(Model(part)).run(feeds)[0], Session(Model(showing(voice, ["whole"]))).run(feeds)[1])
    judged = judged_by(Model(voice), lambda name: True, leads=True)
    assert judged.leader is not None
    given = judged.leader.fed(feeds)
    assert set(given) == {"ids", "whole"} and "wave" not in judged.leader._session.outputs


def test_trials_are_as_many_as_the_lengths_allow(
    lively: onnx.ModelProto, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that make four times as many frames take four times as long, so a fourth of them judges each group."""
    settings = Options(data=data)
    analysis = analysis_of(load(lively), settings.scope)
    costs = CostModel(analysis)
    calibration = calibrated(analysis, settings, costs, Clock(silent))
    assert calibration is not None
    long = replace(calibration, outputs=[[np.tile(x, (1, 4, 1)) for x in row] for row in calibration.outputs])
    levels, everything = affordable(analysis, calibration, costs, 10)
    assert levels == LEVELS and len(everything) > 16
    monkeypatch.setattr("onnxprune.choose.sensitivity.OPENED", 0.0)
    runs = [float(np.mean([work(analysis, c, costs, k) for k in everything])) for c in (calibration, long)]
    seen = sum(int(np.prod(analysis.observation.shapes[n])) for n in ("wave", "durations"))
    assert work(analysis, long, costs, 3) == pytest.approx(costs.macs() * sum(x.size for x in long.outputs[3]) / seen)
    assert runs[1] > 2 * runs[0]
    monkeypatch.setattr("onnxprune.choose.sensitivity.WORK", 10 * len(FEW) * 16.5 * runs[0])
    found = [affordable(analysis, c, costs, 10) for c in (calibration, long)]
    assert [len(chosen) for _, chosen in found] == [16, int(16.5 * runs[0] / runs[1])]
    assert found[0][0] == found[1][0] == FEW
    assert found[0][1] == sorted(set(found[0][1])) and set(found[0][1]) <= set(everything)
    monkeypatch.setattr("onnxprune.choose.sensitivity.WORK", 1.0)
    assert len(affordable(analysis, calibration, costs, 10)[1]) == LEAST
    monkeypatch.undo()
    monkeypatch.setattr("onnxprune.choose.sensitivity.OPENED", 1e12)
    assert affordable(analysis, calibration, costs, 10)[0] == FEW, "opening sessions takes time, too"
