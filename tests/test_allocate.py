"""The allocator: any cost, every legal width at its real cost, exact where costs are sums, and true about what it cannot do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import BadInputError, Budget, TargetNotReachableError
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose import cost as cost_module
from onnxprune.choose.allocate import Allocation, allocate
from onnxprune.choose.costs import CostModel
from onnxprune.choose.knapsack import hull, pack
from onnxprune.choose.options import Options
from onnxprune.choose.spend import lowest, spend
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.model.load import load
from tests.helpers import documented, score
from tests.oracle import net

UNITS = 64
WIDTHS = tuple(range(58))
NOISE = np.random.default_rng(5).normal(0, 0.05, UNITS)
STEEP = 1e-3 * (np.exp(np.arange(UNITS) / 8) - 1)

KINDS: dict[str, Callable[[int], float]] = {
    "staircase": lambda n: -(-(UNITS - n) // 16) / 4,
    "concave": lambda n: (1 - n / UNITS) ** 0.5,
    "convex": lambda n: (1 - n / UNITS) ** 2,
    "noisy": lambda n: 1 - n / UNITS + float(NOISE[n]),
}


def harm(curves: Sequence[np.ndarray], counts: Sequence[int]) -> float:
    return float(sum(c[n] for c, n in zip(curves, counts, strict=True)))


def brute(widths, curves, cost, target) -> float:  # type: ignore[no-untyped-def]
    """The least damage of all counts that meet the target; infinite where none does."""
    every = (c for c in itertools.product(*widths) if cost(c) <= target)
    return min((harm(curves, c) for c in every), default=np.inf)


@pytest.mark.parametrize("total", [1e-3, 1.0, 1e12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_of_any_kind_is_spent_exactly(kind: str, total: float) -> None:
    widths = [WIDTHS[::3], WIDTHS[::4], WIDTHS[::5]]
    curves = [a * STEEP for a in (1.0, 2.5, 0.3)]

    def cost(counts: Sequence[int]) -> float:
        return total / 3 * sum(KINDS[kind](n) for n in counts)

    target = 0.5 * cost((0, 0, 0))
    found = spend(widths, curves, cost, target)
    assert found.is_met and found.is_exact and found.cost == cost(found.counts) <= target * (1 + 1e-11)
    assert harm(curves, found.counts) == pytest.approx(brute(widths, curves, cost, target), rel=1e-9)


@pytest.mark.parametrize("total", [1e-3, 1e12])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_widths_are_spent_nearly_as_well_as_by_trying_all(kind: str, total: float) -> None:
    """Convolutions one after another: no sum, so the result need not be the least; 5 % above it is the bound here."""
    widths = [WIDTHS[::3], WIDTHS[::4], WIDTHS[::5]]
    curves = [a * STEEP for a in (1.0, 2.5, 0.3)]

    def cost(counts: Sequence[int]) -> float:
        a, b, c = (KINDS[kind](n) for n in counts)
        return total * (a + a * b + b * c + c)

    target = 0.5 * cost((0, 0, 0))
    found = spend(widths, curves, cost, target)
    assert found.is_met and not found.is_exact and cost(found.counts) <= target * (1 + 1e-11)
    assert harm(curves, found.counts) <= 1.05 * brute(widths, curves, cost, target)


@given(
    tables=st.lists(
        st.lists(st.tuples(st.integers(-5, 40), st.integers(0, 30)), min_size=1, max_size=5), min_size=1, max_size=4
    ),
    share=st.floats(0.05, 1.1),
    scale=st.sampled_from([1e-3, 1.0, 1e12]),
)
def test_sums_equal_brute_force(tables: list[list[tuple[int, int]]], share: float, scale: float) -> None:
    """Costs and damages that rise, fall and stay, as they come."""
    widths = [tuple(range(len(t))) for t in tables]
    curves = [np.array([0.0, *(d for _, d in t[1:])]) for t in tables]

    def cost(counts: Sequence[int]) -> float:
        return scale * (100 + sum(t[n][0] for t, n in zip(tables, counts, strict=True)))

    target = share * cost([0] * len(tables)) + 1e-9 * scale
    least = brute(widths, curves, cost, target)
    found = spend(widths, curves, cost, target)
    assert found.is_met == np.isfinite(least)
    if cost([0] * len(tables)) <= target:
        assert not any(found.counts), "nothing goes where nothing has to"
    elif found.is_met:
        assert found.is_exact and found.damage == pytest.approx(least, abs=1e-9)
    else:
        assert found.cost == min(cost(c) for c in itertools.product(*widths))


def test_a_plateau_blocks_no_group() -> None:
    """The first 15 channels of the cheap group save nothing; the other would lose 100 times as much."""
    curves = [np.linspace(0, 0.02, UNITS), np.linspace(0, 2.0, UNITS)]

    def cost(counts: Sequence[int]) -> float:
        blocks = -(-(UNITS - counts[0]) // 16)
        return float(blocks + blocks * (UNITS - counts[1]) / 640)

    found = spend([WIDTHS, WIDTHS], curves, cost, 0.5 * cost((0, 0)))
    assert found.is_met and found.counts == (32, 0)


def test_groups_that_save_only_together() -> None:
    """Two branches side by side: the slower one is what counts."""

    def cost(counts: Sequence[int]) -> float:
        return float(max(UNITS - n for n in counts))

    found = spend([WIDTHS, WIDTHS], [STEEP, 2 * STEEP], cost, 32.0)
    assert found.is_met and found.counts == (32, 32)


def test_a_constant_cost_cannot_be_spent() -> None:
    found = spend([WIDTHS, WIDTHS], [STEEP, STEEP], lambda counts: 7.0, 3.5)
    assert not found.is_met and found.cost == 7.0
    assert lowest([WIDTHS], lambda counts: 7.0).cost == 7.0


def test_the_lowest_cost_is_not_always_the_narrowest() -> None:
    """A width that the kernels like: 32 kept is faster than 7."""

    def cost(counts: Sequence[int]) -> float:
        return float(np.prod([1.0 if n == 32 else 2.0 - n / 100 for n in counts]))

    found = spend([WIDTHS] * 3, [STEEP] * 3, cost, 0.5)
    assert not found.is_met and found.cost == 1.0 == lowest([WIDTHS] * 3, cost).cost
    assert spend([WIDTHS] * 3, [STEEP] * 3, cost, 1.0).counts == (32, 32, 32)


def test_evaluations_stay_bounded() -> None:
    """A hundred groups whose costs multiply: not much more than a few tables of eight probes each."""
    calls = 0

    def cost(counts: Sequence[int]) -> float:
        nonlocal calls
        calls += 1
        kept = UNITS - np.array(counts, float)
        return float(kept[:-1] @ kept[1:])

    curves = [(1 + k % 7) * STEEP for k in range(100)]
    found = spend([WIDTHS] * 100, curves, cost, 0.5 * cost([0] * 100))
    assert found.is_met and calls < 100 * 8 * 25


def test_hull_and_pack_on_hand_made_numbers() -> None:
    saving, damage = np.array([0.0, 1, 2, 3]), np.array([0.0, 5, 1, 2])
    assert hull(saving, damage) == [0, 2, 3], "the second point lies above the line between its neighbours"
    packed = pack([saving, saving], [damage, 10 * damage], 3.0)
    assert packed is not None and packed.choice == (3, 0) and packed.exact
    assert pack([saving], [damage], 3.5) is None


# ---------------------------------------------------------------- on a model


TEXT = """g (float[N,8] x) => (float[N,4] y)
<float[8,64] a, float[64,64] b, float[64,48] c, float[48,4] d> {
    h = MatMul(x, a)
    i = Relu(h)
    j = MatMul(i, b)
    k = Relu(j)
    l = MatMul(k, c)
    m = Relu(l)
    y = MatMul(m, d)
}"""


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analysis_of(load(net(TEXT)), Options())


class Blocks(documented(cost_module, "Blocks", np=np)):  # type: ignore[misc]
    """The example of `choose/cost.py`, in thousandths of a second."""

    name, unit = "latency", "s"

    def per_node(self, removed: Bools | None = None) -> Mapping[str, float]:
        return {group: 1e-3 * blocks for group, blocks in super().per_node(removed).items()}

    def per_class(self) -> np.ndarray:
        return 1e-3 * super().per_class()


def spent(analysis: Analysis, share: float, round_to: int, cost: object = None) -> Allocation:
    scores = score(analysis, "l2", 0)
    damages = {g.id: (k + 1) * STEEP[: g.removable + 1] for k, g in enumerate(analysis.groups) if g.removable}
    return allocate(analysis, scores, Budget("macs", share), round_to, cost or Blocks(analysis), None, damages)  # type: ignore[arg-type]


@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_a_cost_of_ones_own_at_the_door(analysis: Analysis, round_to: int) -> None:
    cost = Blocks(analysis)
    found = spent(analysis, 0.5, round_to)
    kept = cost.total(found.removed) / cost.total()
    assert found.by == "damage" and found.is_exact and 0.4 < kept <= 0.5
    for group in (g for g in analysis.groups if g.removable):
        assert (~found.removed[group.classes]).sum() % 16 == 0, "less of a block costs the same"


def test_who_decided(analysis: Analysis) -> None:
    scores = score(analysis, "l2", 0)
    assert allocate(analysis, scores, Budget("ratio", 0.5), 1).by == "ratio"
    cost = Blocks(analysis)
    found = allocate(analysis, scores, Budget("macs", 0.5), 1, cost)
    assert found.by == "importance" and not found.is_exact and cost.total(found.removed) <= 0.5 * cost.total()
    with pytest.raises(ValueError, match="No damages for"):
        allocate(analysis, scores, Budget("macs", 0.5), 1, cost, None, {})


@pytest.mark.parametrize("has_damages", [True, False])
def test_the_lowest_share_is_true_and_reachable(analysis: Analysis, has_damages: bool) -> None:
    cost = Blocks(analysis)
    damages = {g.id: STEEP[: g.removable + 1] for g in analysis.groups} if has_damages else None
    scores = score(analysis, "l2", 0)
    with pytest.raises(
        TargetNotReachableError, match=r"^--latency 0\.1 cannot be reached: at most down to (0\.273) .* s\)"
    ):
        allocate(analysis, scores, Budget("macs", 0.1), 16, cost, None, damages)
    lowest_share = 3 / 11  # one block of each of the three groups, of 4 + 4 + 3
    found = allocate(analysis, scores, Budget("macs", lowest_share + 1e-9), 16, cost, None, damages)
    assert cost.total(found.removed) == pytest.approx(3e-3)


def test_a_cost_that_is_no_number(analysis: Analysis) -> None:
    class Broken(Blocks):
        def total(self, removed: Bools | None = None) -> float:
            return float("nan")

    with pytest.raises(BadInputError, match="The cost 'latency' is nan s"):
        spent(analysis, 0.5, 1, Broken(analysis))


@pytest.mark.parametrize("metric", ["macs", "params", "size"])
def test_shares_of_nodes_add_up(analysis: Analysis, metric: str) -> None:
    model = CostModel(analysis)
    cost = model.of(metric)
    removed = spent(analysis, 0.5, 1, cost).removed
    for gone in (None, removed):
        assert sum(cost.per_node(gone).values()) == pytest.approx(cost.total(gone))
        assert cost.total(gone) == CostModel(analysis).of(metric).total(gone), "what is remembered is what is"
    assert cost.total(removed) <= 0.5 * cost.total()
    assert cost.per_class().shape == (analysis.solution.count,) and cost.per_class().sum() > 0
