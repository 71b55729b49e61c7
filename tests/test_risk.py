"""A limit on the loss is a promise: what samples show of a loss, which are set aside, and that the boldest model that passed is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune import Budget, TargetNotReachableError
from onnxprune.analyse.feeds import samples_of
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.sources import BY_SAMPLE, Aside, Sources
from onnxprune.choose import max_drop
from onnxprune.choose.risk import FEWEST, Evidence, least
from onnxprune.report.lines import repair_lines
from onnxprune.report.markdown import markdown
from tests.oracle import net

RNG = np.random.default_rng(0)
MLP = """g (float[N,8] x) => (float[N,5] y) <float[8,32] w, float[32,32] u, float[32,5] v>
    { a = MatMul(x, w) r = Relu(a) b = MatMul(r, u) s = Relu(b) y = MatMul(s, v) }"""


def evidence(each: Any, bounds: tuple[float, float] | None = (0.0, 1.0)) -> Evidence:
    each = np.asarray(each, float)
    return Evidence(each, bounds, float(each.mean()), len(each))


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("kind", ["coin", "share", "signed"])
def test_a_loss_at_the_limit_passes_one_time_in_ten_at_most(kind: str) -> None:
    """Of 2,000 draws no more than 10 % and three standard deviations; and a tenth of the limit passes mostly."""
    rng, limit, n = np.random.default_rng(1), 0.05, 400

    def drawn(mean: float) -> Evidence:
        if kind == "coin":
            return evidence(rng.random(n) < mean)
        if kind == "share":
            return evidence(rng.beta(mean * 4, (1 - mean) * 4, n))
        return evidence(rng.choice([1.0, -1.0, 0.0], n, p=[mean + 0.02, 0.02, 1 - mean - 0.04]), (-1.0, 1.0))

    false = np.mean([drawn(limit).shows(limit) for _ in range(2000)])
    assert false <= 0.1 + 3 * (0.09 / 2000) ** 0.5
    assert np.mean([drawn(limit / 10).shows(limit) for _ in range(200)]) > 0.9


def test_the_least_number_is_the_least() -> None:
    """By hand: 0.99^n <= 0.1 from n = 230 on."""
    assert least(0.01, (0.0, 1.0), coin=True) == 230
    assert evidence(np.zeros(230)).shows(0.01) and not evidence(np.zeros(229)).shows(0.01)
    signed = least(0.01, (-1.0, 1.0), coin=False)
    assert signed is not None and 230 < signed < 400 and evidence(np.zeros(signed), (-1.0, 1.0)).shows(0.01)
    assert not evidence(np.zeros(signed - 10), (-1.0, 1.0)).shows(0.01)
    assert least(0.0, (0.0, 1.0), coin=True) is None and least(0.01, None, coin=False) == FEWEST


def test_how_many_samples_would_show_it() -> None:
    seen = evidence([1.0] * 4 + [0.0] * 396)
    assert not seen.shows(0.015)
    n = seen.needed(0.015)
    assert n is not None and 400 < n < 4000
    shown = [evidence(np.arange(m) < m // 100) for m in (n, n * 9 // 10)]
    assert [e.shows(0.015) for e in shown] == [True, False]
    assert seen.needed(0.01) is None and seen.needed(0.005) is None


def test_losses_without_bounds_get_a_limit_that_is_about_right() -> None:
    rng = np.random.default_rng(2)
    wrong = np.mean([evidence(rng.normal(0.1, 0.05, FEWEST), None).shows(0.1) for _ in range(2000)])
    assert 0.07 < wrong < 0.13
    assert not Evidence(np.zeros(FEWEST), None, float("inf"), 40).shows(1e9)


# ---------------------------------------------------------------- what is set aside


def inputs(*shape: object) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])]


def numbered(count: int) -> Any:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)


def set_aside(count: int, number: int, limit: int = 10_000, seed: int = 0, sources: Sources = BY_SAMPLE) -> Samples:
    found = samples_of(
        [{"x": numbered(count)}], inputs(3), limit, seed=seed, aside=Aside(number, "it"), sources=sources
    )
    assert found.unseen is not None
    known = [int(k) for f in (*found.feeds, *found.unseen.feeds) for k in f["x"][:, 0]]
    assert sorted(known) == list(range(count)), "every sample is used once"
    return found


@pytest.mark.parametrize(
    ("count", "number", "limit", "wanted"),
    [
        (1000, 20, 10_000, 200),
        (1000, 100, 10_000, 300),
        (1000, 230, 10_000, 500),
        (400, 290, 10_000, 290),
        (1000, 20, 512, 488),
        (6000, 20, 5000, 1200),
    ],
)
def test_how_many_are_set_aside(count: int, number: int, limit: int, wanted: int) -> None:
    """A fifth; what the limit needs, up to a half, or three quarters; and all that is not used else."""
    found = set_aside(count, number, limit)
    assert found.unseen is not None and found.unseen.count == wanted and found.count == count - wanted
    assert sorted(found.unseen.source_of) == list(range(wanted))


def test_chance_decides_which() -> None:
    """In data that are in the order of ten classes by turns, all classes are there; another seed takes others."""
    found, other = (set_aside(400, 20, seed=s).unseen for s in (0, 1))
    assert found is not None and other is not None
    first, second = ({int(k) for f in u.feeds for k in f["x"][:, 0]} for u in (found, other))
    assert {k % 10 for k in first} == set(range(10)) and first != second


def test_very_unequal_sources() -> None:
    """Sources are set aside until there are enough of them; the one that most samples are of is fitted."""
    of = np.concatenate([np.zeros(1000, int), np.arange(1, 61)])
    found = set_aside(1060, 20, sources=Sources("group", (of,)))
    assert found.unseen is not None and found.unseen.held_by == "group"
    assert len(set(found.unseen.source_of)) == 30 == found.unseen.count and found.count == 1030
    with pytest.raises(
        TargetNotReachableError, match=r"it needs at least 27 groups \(the samples of one group .*, 20 of .* are 11\."
    ):
        set_aside(1060, 20, sources=Sources("group", (of % 11,)))


def test_portions_are_of_one_source_each() -> None:
    of = np.arange(1200) % 40
    found = set_aside(1200, 20, sources=Sources("group", (of,)))
    assert found.unseen is not None
    for feed, number in zip(found.unseen.feeds, found.unseen.source_of, strict=True):
        assert len({of[int(k)] for k in feed["x"][:, 0]}) == 1 and 0 <= number < 20


# ---------------------------------------------------------------- pruning


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_drop, "SHARES", (0.8, 0.5, 0.2))


def data(folder: Path, count: int = 400, **more: Any) -> Path:
    x = RNG.standard_normal((count, 8)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, **more)
    return folder / "x.npz"


def test_the_boldest_that_passed_is_written(tmp_path: Path, few: None) -> None:
    """One after the other until one fails; what is written is what was tested."""
    model = net(MLP)
    tested: list[tuple[float, bool]] = []
    shows = Evidence.shows

    def noted(self: Evidence, limit: float) -> bool:
        tested.append((self.measured, shows(self, limit)))
        return tested[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evidence, "shows", noted)
        report = onnxprune.prune(
            model, Budget("max_drop", 0.2), data=data(tmp_path), metric="top1", round_to=1, benchmark=False
        ).report
    passed = [ok for _, ok in tested[:-1]]
    assert passed == [True] * (len(passed) - 1) + [False], "and no further"
    drop = report.drop
    assert drop is not None and drop.bolder is not None and report.cost.macs is not None
    assert tested[-1] == (drop.measured, True) and tested[-3] == tested[-1]
    assert drop.bolder.measured == tested[-2][0] and drop.bolder.macs == max_drop.SHARES[len(passed) - 1]
    kept = report.cost.macs.after / report.cost.macs.before
    assert max_drop.SHARES[len(passed) - 1] < kept <= max_drop.SHARES[len(passed) - 2]
    assert (drop.samples, drop.sources, drop.confidence, drop.is_approximate) == (80, 80, 0.9, False)
    said = "\n".join(repair_lines(report))
    assert (
        "with 90% confidence the loss is at most 0.2 (top1)" in said and "on 80 samples that no step has seen" in said
    )
    assert f"at {drop.bolder.macs:g} of the MACs it is" in said and "at most 0.1 would need" in said
    assert (
        "with 90% confidence" in markdown(report)
        and json.loads(report.to_json())["drop"]["bolder"]["macs"] == drop.bolder.macs
    )


def test_a_quantized_model_is_tested_as_such(tmp_path: Path, few: None) -> None:
    """The promise is of the file that is written."""
    result = onnxprune.prune(
        net(MLP), Budget("max_drop", 0.5), data=data(tmp_path), then_quantize="int8", round_to=1, benchmark=False
    )
    assert result.report.drop is not None and result.report.drop.is_approximate
    lost = {v.name: v.loss for v in result.report.variants}
    assert lost["pruned and quantized"] <= 0.5 and any(n.op_type == "QuantizeLinear" for n in result.model.graph.node)
    assert "with about 90% confidence" in markdown(result.report)


def test_too_few_samples_are_refused_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("calibrated")

    monkeypatch.setattr("onnxprune.choose.channels.calibrate", never)
    with pytest.raises(
        TargetNotReachableError,
        match=r"0\.01 \(top1\) needs at least 307 samples, 230 of them set aside.* there are 300\.",
    ) as e:
        onnxprune.prune(net(MLP), Budget("max_drop", 0.01), data=data(tmp_path, 300), metric="top1")
    assert e.value.exit_code == 3
    with pytest.raises(TargetNotReachableError, match="no number of samples"):
        onnxprune.prune(net(MLP), Budget("max_drop", 0.0), data=data(tmp_path, 300), metric="top1")
    with pytest.raises(onnxprune.BadInputError, match="your own inputs: give some with --data"):
        onnxprune.prune(net(MLP), Budget("max_drop", 0.1))


def scored(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str, noise: float = 0.0) -> Any:
    """The drop by a score of the user's; of `noise` of the labels, the original is wrong."""
    import onnxruntime as ort

    (folder / f"{name}.py").write_text(f"import numpy as np\ndef score(outputs, data):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)
    x = np.random.default_rng(5).standard_normal((400, 8)).astype(np.float32)
    model = net(MLP)
    labels = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0].argmax(axis=1)
    labels[: int(400 * noise)] = (labels[: int(400 * noise)] + 1) % 5
    np.savez(folder / "x.npz", x=x, labels=labels)
    own = {"data": folder / "x.npz", "metric": f"{name}:score", "round_to": 1, "benchmark": False}
    return onnxprune.prune(model, Budget("max_drop", 0.3), **own).report.drop


def test_a_score_that_is_a_mean_is_tested_sample_by_sample(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "return (outputs['y'].argmax(axis=1) == data['labels']).mean()"
    sure = scored(tmp_path, monkeypatch, "sure_score", body)
    unsure = scored(tmp_path, monkeypatch, "unsure_score", body, noise=0.8)
    assert not sure.is_approximate and not unsure.is_approximate and sure.measured > 0


def test_a_score_that_is_none_is_tested_as_a_whole(tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The correlation of answers and labels: of one sample there is none."""
    drop = scored(
        tmp_path, monkeypatch, "whole_score", "return np.corrcoef(outputs['y'].argmax(axis=1), data['labels'])[0, 1]"
    )
    assert drop.is_approximate and drop.measured <= 0.3


def test_samples_of_one_source_count_once(tmp_path: Path, few: None) -> None:
    groups = np.arange(400) % 50
    drop = onnxprune.prune(
        net(MLP),
        Budget("max_drop", 0.6),
        data=data(tmp_path, groups=groups),
        metric="top1",
        round_to=1,
        benchmark=False,
    ).report.drop
    assert drop is not None and (drop.samples, drop.sources, drop.held_by) == (200, 25, "group")
