"""What the calibration inputs covered is said: how many answers the original gave on them, how many ids of a table they hold, which
channels and places of its outputs were ever active, and from where to where its numbers went."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.calibrate.coverage import coverage
from onnxprune.calibrate.regions import Span
from onnxprune.model.load import load
from onnxprune.report.lines import coverage_lines, repair_lines
from onnxprune.report.markdown import markdown
from onnxprune.report.report import Report
from onnxprune.report.values import CalibrationSummary
from tests.benchmarks.stripped import load_graph
from tests.oracle import net, session
from tests.zoo import feeds, files

SURE = """g (float[N,6] x) => (float[N,6] y) <float[6,16] w, float[16,6] v>
    { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) s = Constant<value_float = 0.001>() d = Mul(c, s) y = Add(d, x) }"""
TOKENS = """g (int64[N,T] ids) => (float[N,T,3] y) <float[40,16] table, float[16,3] v>
    { e = Gather(table, ids) r = Relu(e) y = MatMul(r, v) }"""


def report(text: str, tmp_path: Path, **arrays: np.ndarray) -> Report:
    np.savez(tmp_path / "x.npz", **arrays)
    return onnxprune.prune(
        net(text), Budget("ratio", 0.25), data=tmp_path / "x.npz", round_to=1, benchmark=False
    ).report


@pytest.mark.parametrize("ending", ["logits", "probabilities"])
def test_classes_that_never_came_up(tmp_path: Path, ending: str) -> None:
    """The largest entry of an input is, with 20 added, that of the output: of six classes, four are shown."""
    text = SURE if ending == "logits" else SURE.replace("y = Add(d, x)", "z = Add(d, x) y = Softmax(z)")
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    x[np.arange(64), np.arange(64) % 4] += 20
    found = report(text, tmp_path, x=x)
    said = "'y': the original gave 4 of its 6 answers on these inputs; what the others need may be lost"
    assert said in repair_lines(found) and said in markdown(found)
    assert json.loads(found.to_json())["calibration"]["covered"] == [
        {"tensor": "y", "kind": "answers", "seen": 4, "known": 6}
    ]
    x[np.arange(64), np.arange(64) % 6] += 50
    found = report(text, tmp_path, x=x)
    assert found.calibration is not None and found.calibration.covered[0].seen == 6
    assert not any("may be lost" in line for line in repair_lines(found)), "nothing to say"


def test_a_vector_that_describes_its_input_has_no_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    found = report(SURE.replace("y = Add(d, x)", "y = Identity(d)"), tmp_path, x=x)
    assert found.calibration is not None and found.calibration.covered == ()


def test_ids_that_never_came_up(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(5, 17, (64, 8))
    found = report(TOKENS, tmp_path, ids=ids)
    assert "'ids': these inputs hold 12 of its 40 ids; what the others need may be lost" in repair_lines(found)


def test_made_up_inputs_cover_nothing() -> None:
    found = onnxprune.prune(net(TOKENS), Budget("ratio", 0.25), recover="lsq", round_to=1, benchmark=False).report
    assert found.calibration is not None and found.calibration.made_up and found.calibration.covered == ()


# ---------------------------------------------------------------- outputs without classes


def seen(
    model: onnx.ModelProto, *arrays: np.ndarray
) -> tuple[dict[tuple[str, str], tuple[int, int]], dict[str, tuple[float, float]]]:
    """Of a model whose answers to the user's inputs, run by run, are these: what was seen and known, and spans."""
    analysis = analysis_of(load(model), Scope())
    (name,) = [o.name for o in model.graph.output]
    samples = SimpleNamespace(own=range(len(arrays)), feeds=[{}] * len(arrays), sizes=[len(a) for a in arrays])
    judged = SimpleNamespace(tensors=(name,))
    stand_in: Any = SimpleNamespace(samples=samples, made_up=False, outputs=[[a] for a in arrays], judged=judged)
    covered, spans = coverage(analysis, stand_in)
    assert {c.tensor for c in (*covered, *spans)} <= {name}
    return {(c.kind, c.above or ""): (c.seen, c.known) for c in covered}, {s.tensor: (s.low, s.high) for s in spans}


def ending(text: str, shape: str) -> onnx.ModelProto:
    return net(f"g (float[N,3,4,4] x) => (float[{shape}] y) <float[6,3,1,1] w> {{ a = Conv(x, w) {text} }}")


DETECTOR = ending(
    "b, c = Split<axis=1>(a) s = Sigmoid(c) j = Concat<axis=1>(b, s) f = Constant<value_ints=[0, 6, 16]>() y = Reshape(j, f)",
    "N,6,16",
)


def test_channels_and_places_of_a_detector_and_the_span_of_its_boxes() -> None:
    first = np.zeros((2, 6, 16), np.float32)
    first[:, :3] = np.linspace(-7, 300, 16)
    second = first.copy()
    first[0, 3, 2], second[1, 4, [2, 9]] = 0.5, 0.8
    first[1, 5, 4] = 0.49
    assert seen(DETECTOR, first, second) == (
        {("places", "half"): (2, 16), ("channels", "half"): (2, 3)},
        {"y": (-7.0, 300.0)},
    )


def test_a_mask_has_places_and_no_channels() -> None:
    mask = np.zeros((3, 1, 4, 4), np.float32)
    mask[1, 0, :2] = 0.9
    model = net(
        "g (float[N,3,4,4] x) => (float[N,1,4,4] y) <float[6,3,1,1] w, float[1,6,1,1] v> { a = Conv(x, w) b = Conv(a, v) y = Sigmoid(b) }"
    )
    assert seen(model, mask) == ({("places", "half"): (8, 16)}, {})


def test_answers_of_yes_and_no() -> None:
    """The first is always yes, the second both."""
    model = net(
        "g (float[N,6] x) => (float[N,2] y) <float[6,8] w, float[8,2] v> { a = MatMul(x, w) b = MatMul(a, v) y = Sigmoid(b) }"
    )
    assert seen(model, np.array([[0.9, 0.1], [0.8, 0.7]], np.float32)) == ({("answers", ""): (3, 4)}, {})


KEYPOINTS = ending("y = Relu(a)", "N,6,4,4")


def test_peaks_above_a_background() -> None:
    rng = np.random.default_rng(0)
    maps = (3 + 0.01 * rng.standard_normal((8, 6, 32, 32))).astype(np.float32)
    maps[:, 0, 5, 7], maps[3, 2, 5, 8], maps[3, 4, 1, 1] = 9, 8, 5.5  # 3 + half of the height is 6
    assert seen(KEYPOINTS, maps[:4], maps[4:]) == (
        {("places", "background"): (2, 1024), ("channels", "background"): (2, 6)},
        {},
    )


@pytest.mark.parametrize("model", [KEYPOINTS, DETECTOR], ids=["no background", "boxes only"])
def test_numbers_have_a_span(model: onnx.ModelProto) -> None:
    """What only looks like scores has none: nothing is said of channels or places."""
    values = np.random.default_rng(0).uniform(2, 3, (8, 6, 16)).astype(np.float32)
    values = values if model is DETECTOR else values.reshape(8, 6, 4, 4)
    assert seen(model, values) == ({}, {"y": (float(values.min()), float(values.max()))})


def test_nothing_is_said_of_what_is_not_known() -> None:
    wide = np.random.default_rng(0).standard_normal((8, 12, 4, 4)).astype(np.float32)
    assert seen(KEYPOINTS, wide) == ({}, {}), "features have no span that means something"
    assert seen(KEYPOINTS, wide[:, :6], wide[:, :6, :2]) == ({}, {}), "sizes differ"
    wide[0, 0, 0, 0] = np.inf
    assert seen(KEYPOINTS, wide) == ({}, {})


def test_classes_along_another_axis() -> None:
    """A segmentation: probabilities over axis 1, or what an ArgMax reads."""
    logits = np.zeros((2, 6, 4, 4), np.float32)
    logits[:, 1], logits[0, 4, 0, 0] = 5, 9
    sums = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert seen(ending("y = Softmax<axis=1>(a)", "N,6,4,4"), sums) == ({("answers", ""): (2, 6)}, {})
    labels = net(
        "g (float[N,3,4,4] x) => (int64[N,4,4] y) <float[6,3,1,1] w> { a = Conv(x, w) y = ArgMax<axis=1, keepdims=0>(a) }"
    )
    analysis = analysis_of(load(labels), Scope())
    samples = SimpleNamespace(own=[0], feeds=[{}], sizes=[2])
    given: Any = SimpleNamespace(
        samples=samples, made_up=False, outputs=[[logits]], judged=SimpleNamespace(tensors=("a",))
    )
    assert [(c.kind, c.seen, c.known) for c in coverage(analysis, given)[0]] == [("answers", 2, 6)]


def test_regions_are_said_in_the_report(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = onnxprune.prune(
        _with_hidden(), Budget("ratio", 0.25), data=tmp_path / "x.npz", round_to=1, benchmark=False
    ).report
    lines = repair_lines(found)
    assert "'y': 0 of its 1 channels reached 0.5 on these inputs; what the others need may be lost" not in lines
    assert "'y': 0 of its 16 places reached 0.5 on these inputs; what the others need may be lost" in lines
    assert any(
        line.startswith("'z': from ") and line.endswith("of what goes beyond nothing is known") for line in lines
    )
    written = json.loads(found.to_json())["calibration"]
    assert written["covered"] == [{"tensor": "y", "kind": "places", "seen": 0, "known": 16, "above": "half"}]
    assert [s["tensor"] for s in written["spans"]] == ["z"] and written["spans"][0]["low"] < written["spans"][0]["high"]


def _with_hidden() -> onnx.ModelProto:
    """A mask that is never there, and two numbers."""
    text = """g (float[N,3,4,4] x) => (float[N,1,4,4] y, float[N,2,1,1] z) <float[8,3,1,1] w, float[1,8,1,1] v, float[2,8,1,1] u>
    { a = Conv(x, w) r = Relu(a) b = Conv(r, v) t = Constant<value_float = -50.0>() c = Add(b, t) y = Sigmoid(c)
      p = GlobalAveragePool(r) z = Conv(p, u) }"""
    return net(text)


def test_of_many_outputs_of_numbers_the_first_are_said() -> None:
    made = CalibrationSummary(8, 0, 2, 1, 1, False, 0, spans=tuple(Span(f"y{k}", -k, k) for k in range(6)))
    lines = coverage_lines(made)
    assert lines[0] == "'y0': from 0 to 0 on these inputs; of what goes beyond nothing is known"
    assert len(lines) == 4 and lines[3] == "and 3 more outputs of which only the span is known"


def test_the_output_of_a_denoiser() -> None:
    """Three channels of a picture, as an exporter writes it."""
    model = load_graph(files()["diffusers__unet__legacy"])
    runs = [feeds(model, 2, seed) for seed in range(2)]
    given = session(model)
    covered, spans = seen(model, *(given.run(None, f)[0] for f in runs))
    assert not covered and spans["output"][0] < 0 < spans["output"][1]
