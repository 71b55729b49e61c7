"""All samples of the data are used, as far as time and room allow; of more, some that are spread over it.

Seen red: 512 of more samples, the first ones instead of a spread, a share without the floor, a ceiling that forgets one of the three
costs, a note where the user said how many.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune import Budget
from onnxprune.analyse import feeds as feeding
from onnxprune.analyse.batch import first_axes
from onnxprune.analyse.feeds import samples_of
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.runs import between
from onnxprune.analyse.scope import Scope
from onnxprune.choose import channels
from onnxprune.choose.channels import share_of_all
from onnxprune.choose.costs import CostModel
from onnxprune.groups.observation import batch_of
from onnxprune.model.load import load
from tests.oracle import net

INPUTS = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
MLP = """g (float[N,4] x) => (float[N,3] y) <float[4,16] v, float[16,3] w> {
    a = MatMul(x, v)
    h = Relu(a)
    y = MatMul(h, w)
}"""


def numbered(first: int, last: int) -> Any:
    return np.repeat(np.arange(first, last, dtype=np.float32)[:, None], 4, axis=1)


def feeds(counts: list[int]) -> list[dict[str, Any]]:
    return [{"x": numbered(a, b)} for a, b in pairwise(np.cumsum([0, *counts]))]


def used(counts: list[int], **options: Any) -> tuple[list[int], int]:
    """Which of the numbered samples, in feeds of these sizes, are used; and how many are said to be left out."""
    found = samples_of(feeds(counts), INPUTS, **options)
    return sorted(int(k) for f in found.feeds for k in f["x"][:, 0]), found.left_out


def test_fewer_samples_are_spread_over_the_data() -> None:
    batch = first_axes([{"x": numbered(0, 10)}], INPUTS)
    assert batch is not None
    for counts, limit, wanted in (([10], 4, [0, 2, 5, 7]), ([4, 1, 5], 5, [0, 2, 4, 6, 8]), ([10], 11, range(10))):
        found = feeding.spread(feeds(counts), batch, limit)
        assert [int(k) for f in found for k in f["x"][:, 0]] == list(wanted)
    assert used([10], limit=4) == ([0, 1, 2, 3], 6)  # what was asked for: plans that say so mean the first ones
    assert used([10], limit=11) == used([10]) == (list(range(10)), 0)


def test_a_share_of_all_but_no_fewer_than_usual() -> None:
    assert used([2000], share=0.5) == (list(range(0, 2000, 2)), 1000)
    few, out = used([2000], share=0.01)
    assert (len(few), out) == (feeding.USUAL, 2000 - feeding.USUAL)
    assert used([300], share=0.01) == (list(range(300)), 0)
    assert used([2000], share=0.5, limit=1500)[1] == 500  # what is asked for counts


@pytest.mark.parametrize(
    ("name", "unit"), [("ALL_MACS", 16 * 4 + 16 * 3), ("ALL_ROOM", 4 * 32), ("ALL_OUTPUTS", 4 * 3)]
)
def test_each_cost_of_all_samples_has_a_ceiling(monkeypatch: pytest.MonkeyPatch, name: str, unit: int) -> None:
    """unit: of one sample; for 1,000, the ceiling is that of 250."""
    analysis = analysis_of(load(net(MLP)), Scope())
    given, costs = [{"x": numbered(0, 600)}, {"x": numbered(600, 1000)}], CostModel(analysis)
    assert between(analysis) == 4 * 32 * batch_of(analysis.feeds[0])  # both hidden tensors at once
    assert share_of_all(analysis, costs, given) == 1
    monkeypatch.setattr(channels, name, 250 * unit)
    assert share_of_all(analysis, costs, given) == pytest.approx(0.25)


def test_all_samples_are_used_and_a_ceiling_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)

    def found(**options: Any) -> Any:
        budget = Budget("macs", 0.7)
        return onnxprune.prune(net(MLP), budget, data=tmp_path / "x.npz", round_to=1, benchmark=False, **options).report

    def notes(report: Any) -> list[str]:
        return [text for text in report.warnings if "samples were used" in text]

    everything = found()
    assert everything.calibration.samples == 700 and not notes(everything)
    monkeypatch.setattr(channels, "ALL_MACS", 1)
    monkeypatch.setattr(feeding, "USUAL", 560)
    some = found()
    assert some.calibration.samples == 560
    assert notes(some) == [
        "560 of 700 samples were used, evenly spread, as all would take long or much room; --samples 700 uses all"
    ]
    assert found(samples=700).calibration.samples == 700
    asked = found(samples=90)
    assert asked.calibration.samples == 90 and not notes(asked)
