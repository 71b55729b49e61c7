"""Graphs as exporters write them: pruned by half, proved, and no less is found in them than was found before.

The own ones always; the larger zoo and the real models where they are, under the `slow` mark.
"""

from __future__ import annotations

import onnx
import pytest

from models import fetch, scores
from tests.zoo import SHARED, files, load_graph
from tests.zoo.checks import Measured, measure
from tests.zoo.measure import MODES, expected, subject

SLACK = 0.01  # of the MACs: how much more than the recorded share may be left
EXPECTED = expected()
OWN = files()
OTHERS = {name: path for name, path in files(SHARED).items() if name not in OWN}
modes = pytest.mark.parametrize("mode", MODES)


def compare(name: str, mode: str, found: Measured, same_groups: bool = False) -> None:
    """Not worse than recorded; `same_groups` wants the very number of groups, where a change of it has to be looked at."""
    recorded = EXPECTED[name][mode]
    assert found.groups > 0
    if same_groups:
        assert found.groups == recorded["groups"], f"{found.groups} prunable groups, {recorded['groups']} were recorded"
    assert found.macs <= recorded["macs"] + SLACK, f"{found.macs:.3f} of the MACs left, recorded {recorded['macs']:.3f}"


def test_the_own_graphs_are_there_and_small() -> None:
    assert len(OWN) == 17
    assert set(OWN) <= set(EXPECTED)
    assert sum(path.stat().st_size for path in OWN.values()) < 1_500_000


def test_loading_is_deterministic_and_fills_every_constant() -> None:
    for path in OWN.values():
        model = load_graph(path)
        assert model.SerializeToString() == load_graph(path).SerializeToString()
        onnx.checker.check_model(model, full_check=True)
        assert not model.metadata_props


@modes
@pytest.mark.parametrize("name", OWN)
def test_own_graph(name: str, mode: str) -> None:
    compare(name, mode, measure(load_graph(OWN[name]), MODES[mode]), same_groups=True)


@pytest.mark.slow
@modes
@pytest.mark.parametrize(
    "name", OTHERS or [pytest.param("", marks=pytest.mark.skip(reason="no shared/zoo beside this checkout"))]
)
def test_shared_graph(name: str, mode: str) -> None:
    found = measure(load_graph(OTHERS[name]), MODES[mode])
    assert found.groups > 0
    assert found.macs < 1
    if name in EXPECTED:  # `python -m tests.zoo.measure` records what is there
        compare(name, mode, found)


@pytest.mark.slow
@modes
@pytest.mark.parametrize("name", fetch.MANIFEST)
def test_real_model(name: str, mode: str) -> None:
    """Checked on inputs of the kind that it was made for."""
    try:
        model, examples = subject(name)
    except (fetch.FetchError, scores.ScoreError) as problem:
        pytest.skip(f"cannot be fetched or fed here: {problem}")
    compare(name, mode, measure(model, MODES[mode], examples))
