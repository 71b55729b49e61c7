"""What is run at once: counted by hand, and against what whole portions give.

Seen red: portions that are never cut, positions that are drawn anew for each run, runs that are chosen in place of portions, values of a
run that are held until the next one is through.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune.analyse import runs
from onnxprune.analyse.batch import Batch
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.samples import Place, Samples
from onnxprune.analyse.scope import Scope
from onnxprune.calibrate import stepwise
from onnxprune.calibrate.positions import pick
from onnxprune.calibrate.routes import Routed
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.choose.sensitivity import _held
from onnxprune.cut.plan import Plan
from onnxprune.groups.observation import Feeds
from onnxprune.model.load import load

ROWS = Batch({"x": 0}, {"x": 1}, frozenset({"x"}))

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4] x) => (float[n, 4] y) <float[4, 40] w, float[40, 4] v, float[4] c> {
  fixed = Exp(c)
  a = MatMul(x, w)
  b = Relu(a)
  d = Add(b, a)
  e = MatMul(d, v)
  y = Add(e, fixed)
}"""


def branches() -> ModelProto:
    model = parser.parse_model(BRANCHES)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 40)), ("v", (40, 4)), ("c", (4,))):
        values = rng.standard_normal(shape).astype("f")
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, shape, values.tobytes(), raw=True))
    return model


def portions(*counts: int) -> Samples:
    """Portions of so many samples, which are numbered, as their labels are; every third one is held out."""
    ends = np.cumsum(counts)
    feeds = tuple({"x": np.arange(e - n, e, dtype="f")[:, None]} for n, e in zip(counts, ends, strict=True))
    labels = tuple({"label": np.arange(e - n, e)} for n, e in zip(counts, ends, strict=True))
    held = tuple(k % 3 == 2 for k in range(len(counts)))
    return Samples(feeds, held, counts, len(counts) - 1, labels[:-1], source_of=tuple(range(len(counts))))


def each(feeds: Feeds) -> float:
    return 100.0 * len(feeds["x"])


def test_what_lies_between_is_what_is_there_at_once() -> None:
    """Of two samples: a, b and d, 2 x 40 numbers each, are there while d is made; what no input makes larger does not count."""
    analysis = analysis_of(load(branches()), Scope())
    assert len(analysis.feeds[0]["x"]) == 2
    assert runs.between(analysis) == 3 * 2 * 40 * 4
    assert runs.taking(analysis)({"x": np.zeros((6, 4), "f")}) == 3 * 6 * 40 * 4


@pytest.mark.parametrize(("room", "found"), [(800, [(0, 8)]), (799, [(0, 4), (4, 8)]), (300, [(0, 3), (3, 6), (6, 8)])])
def test_a_run_is_as_large_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, room: int, found: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(runs, "ROOM", room)
    assert runs.runs(portions(8).feeds[0], ROWS, each) == found


@pytest.mark.parametrize("room", [1, 250, 1 << 28])
def test_runs_know_their_place(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(runs, "ROOM", room)
    whole = portions(3, 8, 5, 1)
    found = runs.in_runs(whole, ROWS, each)
    assert max(found.sizes) == max(1, min(8, room // 100)) and sum(found.sizes) == 17
    assert np.concatenate([f["x"] for f in found.feeds]).ravel().tolist() == list(range(17))
    assert np.concatenate([y["label"] for y in found.labels]).tolist() == list(range(16))
    assert found.count == whole.count
    for k, feeds in enumerate(found.feeds):
        place = found.place(k)
        first = whole.feeds[place.portion]["x"][0, 0]
        assert feeds["x"][0, 0] == first + place.first
        assert found.held[k] == whole.held[place.portion] and found.source_of[k] == place.portion
    assert [[v for k in some for v in found.feeds[k]["x"][:, 0]] for some in found.portions()] == [
        f["x"][:, 0].tolist() for f in whole.feeds
    ]
    few = found.only([k for some in found.portions()[1::2] for k in some])
    assert [few.size(some) for some in few.portions()] == [8, 1]
    assert {few.place(k).portion for k in range(len(few.feeds))} == {0, 1}


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
@pytest.mark.parametrize("cut", [[12], [5, 5, 2], [1] * 12])
def test_runs_look_at_the_positions_of_their_portion(count: int, cut: list[int]) -> None:
    found, first = [], 0
    for n in cut:
        found += (pick(9 * n, count, (0, 3), Place(3, first, n, 12)) + 9 * first).tolist()
        first += n
    assert found == pick(9 * 12, count, (0, 3)).tolist()


def test_what_is_judged_by_is_chosen_by_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOM", 1)
    whole = portions(*[100, 100, 100] * 4)

    def judged(samples: Samples) -> list[float]:
        calibration: Any = type("Calibration", (), {"samples": samples})
        return [v for k in _held(calibration) for v in samples.feeds[k]["x"][:, 0].tolist()]

    assert judged(runs.in_runs(whole, ROWS, each)) == judged(whole)
    assert len(judged(whole)) == 100


def test_results_do_not_depend_on_how_portions_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.choose.channels.AUGMENTED", 0)
    sizes: list[tuple[int, ...]] = []
    cut = runs.in_runs
    monkeypatch.setattr(
        "onnxprune.analyse.feeds.in_runs", lambda *given: sizes.append((found := cut(*given)).sizes) or found
    )

    def pruned(room: int) -> onnxprune.PruneResult:
        monkeypatch.setattr(runs, "ROOM", room)
        options = {"data": "models/digits_calib.npz", "samples": 40, "benchmark": False}
        return onnxprune.prune("models/digits.onnx", onnxprune.Budget("macs", 0.5), **options)

    whole, pieces = pruned(1 << 28), pruned(1)
    assert max(sizes[0]) > 1 == max(sizes[1])
    assert decided(whole.plan) == decided(pieces.plan)
    for a, b in zip(whole.model.graph.initializer, pieces.model.graph.initializer, strict=True):
        assert a.name == b.name and a.data_type == b.data_type
        if a.data_type == TensorProto.FLOAT:
            assert np.allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), rtol=1e-3, atol=1e-4)


def decided(plan: Plan) -> object:
    return [(g.origin, g.classes, g.members) for g in plan.groups]


class Watched:
    """Calls something whose results must be gone when it is called again."""

    def __init__(self, call: Callable[..., list[Any]]) -> None:
        self.call, self.alive, self.calls = call, list[int](), 0

    def __call__(self, *given: Any) -> list[Any]:
        self.alive.append(sum(ref() is not None for ref in getattr(self, "seen", ())))
        values = self.call(*given)
        self.seen = [weakref.ref(v) for v in values if isinstance(v, np.ndarray)]
        return values


def test_what_one_run_gave_is_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out runs as well, of which nothing is read."""
    watched = Watched(Routed.run)
    monkeypatch.setattr("onnxprune.calibrate.calibrate.Routed.run", lambda *given: watched(*given))
    options = {"recover": "none", "importance": "obs", "benchmark": False, "data": "models/digits_calib.npz"}
    onnxprune.prune("models/digits.onnx", onnxprune.Budget("ratio", 0.5), **options)
    assert len(watched.alive) > 3 and not any(watched.alive)


def test_a_repair_holds_one_sample_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values go to a folder; what a loop had last is gone too."""
    rng = np.random.default_rng(0)
    steps = Stepwise(load(branches()), [{"x": rng.standard_normal((2, 4)).astype("f")} for _ in range(4)], memory=0)
    wanted = list(steps.values("a"))
    run, read = Watched(stepwise.Session.run), Watched(lambda path: [np.load(path)])
    monkeypatch.setattr(stepwise.Session, "run", lambda *given: run(*given))
    monkeypatch.setattr(steps, "_load", lambda path: read(path)[0])
    steps.advance(["d"])
    assert run.alive == read.alive == [0] * 4
    monkeypatch.undo()
    for a, d in zip(wanted, steps.values("d"), strict=True):
        assert a is not None and np.array_equal(np.maximum(a, 0) + a, d)
