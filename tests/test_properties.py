"""Random graphs x random plans: whatever is built and whatever is removed, the result is the masked original.

The default profile takes under a minute; `pytest -m slow` adds four minutes of other examples. A failure prints the program (see
random_graphs.build) that hypothesis has shrunk it to.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune import Budget
from tests import oracle
from tests.random_graphs import STEPS, build

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)

number = st.integers(0, 59)
steps = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 3), number, number)
programs = st.lists(steps, min_size=1, max_size=10)
starts = st.sampled_from(["image", "sequence", "rows"])
batches = st.sampled_from([0, 0, 2, 8])
seeds = st.integers(0, 1000)
ratios = st.floats(0.1, 1.0)


def made(program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int, direct: bool) -> onnx.ModelProto:
    model = build(program, seed, start, batch, direct)
    note(f"build({program}, {seed}, {start!r}, {batch}, {direct})")
    try:
        oracle.session(model, optimized=True)
    except Exception:  # some graphs are too much for ONNX Runtime's optimizer
        assume(False)
    return model


def prune(model: onnx.ModelProto, budget: Budget, seed: int, **options: object) -> onnxprune.PruneResult:
    settings = {"round_to": 1, "importance": "random", "recover": "none", "benchmark": False} | options
    return onnxprune.prune(model, budget, seed=seed, **settings)


def agree(model: onnx.ModelProto, result: onnxprune.PruneResult) -> None:
    """1e-4 of the output's scale, or ten times what ORT's own optimizations change in the masked original, at most 1e-3.

    Directions of a recurrence that lose different offsets have no members in a plan: there only onnxprune's own check speaks.
    """
    directions = [a.s for n in model.graph.node for a in n.attribute if a.name == "direction"]
    if b"bidirectional" in directions:
        return
    given_ = oracle.feeds(model, 0)
    masked = oracle.masked(model, result.plan, given_)
    plain, fused = (oracle.session(masked, o).run(None, given_) for o in (False, True))
    assume(all(np.isfinite(a).all() for a in plain))
    noise = oracle.deviation(plain, fused)
    oracle.compare(model, result, max(oracle.TOLERANCE, min(1e-3, 10 * noise)))


def check_oracle(
    program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int, direct: bool, ratio: float
) -> None:
    model = made(program, seed, start, batch, direct)
    before = model.SerializeToString()
    try:
        result = prune(model, Budget("ratio", ratio), seed)
    except onnxprune.NothingPrunableError:
        return
    assert model.SerializeToString() == before, "the original was changed"
    agree(model, result)
    assert all(
        0 not in t.dims for t in result.model.graph.initializer if not any(0 in u.dims for u in model.graph.initializer)
    )


@settings(SETTINGS, max_examples=120)
@given(programs, seeds, starts, batches, st.booleans(), ratios)
def test_equals_the_masked_original(
    program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int, direct: bool, ratio: float
) -> None:
    check_oracle(program, seed, start, batch, direct, ratio)


@pytest.mark.slow
@settings(SETTINGS, max_examples=900)
@given(st.lists(steps, min_size=4, max_size=24), seeds, starts, batches, st.booleans(), ratios)
def test_equals_the_masked_original_more(
    program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int, direct: bool, ratio: float
) -> None:
    check_oracle(program, seed, start, batch, direct, ratio)


@settings(SETTINGS, max_examples=30)
@given(
    programs, seeds, starts, st.sampled_from(["macs", "params"]), st.floats(0.2, 1.0), st.sampled_from([1, 2, 8, None])
)
def test_cost_targets_are_met(
    program: list[tuple[str, int, int, int]], seed: int, start: str, metric: str, amount: float, round_to: int | None
) -> None:
    """What the plan claims is what an independent count over the written graph finds, and it is within the target."""
    model = made(program, seed, start, 0, False)
    try:
        result = prune(model, Budget(metric, amount), seed, round_to=round_to)  # type: ignore[arg-type]
    except (onnxprune.NothingPrunableError, onnxprune.TargetNotReachableError):
        return
    before, after = getattr(result.plan, metric)
    assert after <= amount * before
    agree(model, result)
    if metric == "params":
        floats = [
            sum(int(np.prod(t.dims)) for t in m.graph.initializer if t.data_type == 1) for m in (model, result.model)
        ]
        assert floats[1] <= floats[0] + 16, "weights grew"  # rescaled means and norms add a scalar each


@settings(SETTINGS, max_examples=25)
@given(programs, seeds, starts)
def test_more_removed_never_costs_more(program: list[tuple[str, int, int, int]], seed: int, start: str) -> None:
    model = made(program, seed, start, 0, False)
    costs = []
    for ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
        try:
            result = prune(model, Budget("ratio", ratio), seed, check=False)
        except onnxprune.NothingPrunableError:
            return
        costs.append((result.plan.macs.after, result.plan.params.after))
    for (macs, params), (fewer_macs, fewer_params) in pairwise(costs):
        assert fewer_macs <= macs and fewer_params <= params


@settings(SETTINGS, max_examples=25)
@given(programs, seeds, starts, ratios)
def test_a_plan_replays_byte_for_byte(
    program: list[tuple[str, int, int, int]], seed: int, start: str, ratio: float
) -> None:
    model = made(program, seed, start, 0, False)
    try:
        result = prune(model, Budget("ratio", ratio), seed, check=False)
    except onnxprune.NothingPrunableError:
        return
    text = result.plan.to_json()
    again = onnxprune.prune(model, apply=onnxprune.Plan.from_json(text), benchmark=False)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert again.plan.to_json() == text
    twin = prune(model, Budget("ratio", ratio), seed, check=False)
    assert twin.plan.to_json() == text, "the same seed gives the same plan"


@settings(SETTINGS, max_examples=25)
@given(programs, seeds, starts, batches)
def test_nothing_removed_is_nothing_changed(
    program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int
) -> None:
    model = made(program, seed, start, batch, False)
    try:
        result = prune(model, Budget("ratio", 0.0), seed)
    except onnxprune.NothingPrunableError:
        return
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@settings(SETTINGS, max_examples=25)
@given(programs, seeds, starts, st.floats(0.2, 0.9))
def test_approximate_groups_make_valid_models(
    program: list[tuple[str, int, int, int]], seed: int, start: str, ratio: float
) -> None:
    """With --include-inexact the reference is not a plain mask, but the result still loads, runs and keeps its interface."""
    model = made(program, seed, start, 0, False)
    try:
        result = prune(model, Budget("ratio", ratio), seed, include_inexact=True)
    except onnxprune.NothingPrunableError:
        return
    onnx.checker.check_model(result.model, full_check=True)
    oracle.same_interface(model, result.model)
    for k, sizes in enumerate([(2, 3), (5, 1)]):
        feed = oracle.feeds(model, k, sizes)
        shapes = [[a.shape for a in oracle.session(m).run(None, feed)] for m in (model, result.model)]
        assert shapes[0] == shapes[1]
    assert {g.exact for g in result.plan.groups} <= {True, False}
