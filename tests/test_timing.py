"""Which of two models is faster, said only where the rounds agree."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.proof.elsewhere import Elsewhere
from onnxprune.report.lines import _speed
from onnxprune.report.values import Latency
from onnxprune.runtime import Times, speedup


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
