"""Which of two models is faster, said only where the rounds agree; of how many samples a run is, and of which size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import Budget, prune
from onnxprune.proof.elsewhere import Elsewhere
from onnxprune.report.lines import _speed, summary_rows
from onnxprune.report.report import Report
from onnxprune.report.values import Latency
from onnxprune.runtime import Times, speedup
from tests.oracle import net


def rounds(ratio: float, load: float, seed: int, count: int = 30) -> tuple[list[float], list[float]]:
    """Times of two models, the second `ratio` times as fast, on a machine whose load changes from round to round and a little within."""
    rng = np.random.default_rng(seed)
    slow = np.exp(load * rng.standard_normal(count))
    within = np.exp(0.1 * rng.standard_normal((2, count)))
    return (10 * slow * within[0]).tolist(), (10 / ratio * slow * within[1]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_load_that_hits_both_does_not_matter(seed: int) -> None:
    before, after = rounds(1.86, 1.0, seed)
    found = speedup(before, after)
    assert found.is_measurable and found.low < 1.86 < found.high
    assert found.high / found.low < 1.3


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = [f.low <= 1.5 <= f.high for f in (speedup(*rounds(1.5, 1.0, seed)) for seed in range(400))]
    assert 0.92 <= np.mean(held) <= 0.99


def test_equal_models_are_mostly_not_told_apart() -> None:
    certain = [speedup(*rounds(1.0, 1.0, seed)).is_measurable for seed in range(400)]
    assert np.mean(certain) <= 0.08


def test_what_is_said_of_it() -> None:
    fast, slow, same = (
        Latency.of(Elsewhere("here", tuple(Times(tuple(t), ()) for t in rounds(ratio, 0.5, 0)), None))
        for ratio in (2.0, 0.5, 1.0)
    )
    assert _speed(fast).startswith("2.0") and "x faster (" in _speed(fast)
    assert "x slower (" in _speed(slow)
    assert "not measurable here" in _speed(same) and same.interval[0] < 1 < same.interval[1]


def test_few_rounds_are_all_of_the_interval() -> None:
    found = speedup([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 4.0)


OPEN = """g (float[N,3,H,8] x, float[N,4] z) => (float[N,4] y) <float[12,3,1,1] a, float[4,12] h> {
    c = Conv(x, a) r = Relu(c) p = GlobalAveragePool(r) f = Flatten<axis = 1>(p) m = Gemm<transB = 1>(f, h) y = Add(m, z) }"""


def test_it_is_said_of_how_many_samples_and_of_which_size_a_run_is() -> None:
    def report(**options: Any) -> Report:
        return prune(net(OPEN), Budget("macs", 0.8), benchmark=True, recover="none", **options).report

    told, given = report(), report(input_shapes={"x": (1, 3, 16, 8)}, batch=3)
    size = next(w for w in told.warnings if "leaves sizes" in w)
    assert "'x' 2x3x" in size and "'z'" not in size and "--input-shape" in size
    assert not any("leaves sizes" in w for w in given.warnings)
    assert summary_rows(told)[0][0] == "MACs of 2 samples"
    assert summary_rows(told)[-1][0] == "ms per run of 2 samples"
    assert summary_rows(given)[-1][0] == "ms per run of 3 samples"
    assert given.latency_ms is not None and given.latency_ms.samples == 3
    fixed = prune(
        net(OPEN.replace("N,3,H,8", "1,3,9,8").replace("N,", "1,")), Budget("macs", 0.8), recover="none"
    ).report
    assert summary_rows(fixed)[0][0] == "MACs" and not any("leaves sizes" in w for w in fixed.warnings)
