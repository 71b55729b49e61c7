"""Which width for every group, so that a cost meets a target and the damage is least: on plain numbers, for any cost.

Every legal width of a group is measured at its real cost. Where the cost is a sum over groups, which is measured too, the result is exact
(`choose/knapsack.py`). Else groups go down along the convex hulls of (saving, damage), measured anew several times on the way, as widths
multiply; then swaps repair: the knapsack with the savings measured around the solution found, checked at the real cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.choose.knapsack import edges, pack
from onnxprune.ops.linear import Floats

Choice = tuple[int, ...]
PASSES = (4, 24)
"""How often, at least and at most, savings are measured anew on the way down."""

EVALUATIONS = 1000
"""Evaluations of the cost that a descent aims to stay below where costs are straight lines; the more groups, the fewer passes."""

PROBES = (0.0, 0.03, 0.21, 0.382, 0.618, 0.87, 0.98, 1.0)
"""Places among a group's widths, uneven so that no staircase passes: where these lie on a straight line, so do those between."""

ROUGH = 300
"""States of the knapsack in a swap, which its savings make rough anyway."""

SWAPS = 8
"""Rounds of swaps, each from what the one before found."""

TIGHTER = (6, 24)
"""Attempts per round with many groups and with few: where a swap misses the target, as savings do not quite add up, the next has to
save more.
"""

FEW = 16
"""Up to so many groups, each is also held one width wider while the others are swapped."""

ALIKE = 1e-9
"""Share of the cost within which savings of several groups must add up for the cost to be called a sum over groups."""

ROUNDING = 1e-12
"""Share of the original's cost by which floating-point sums may lie above the target."""


@dataclass(frozen=True)
class Spending:
    """counts: steps removed per group; cost: the real one; damage: the sum over the curves.

    is_met: the target is met; where it is not, these are the counts of the lowest cost. is_exact: no other counts meet the target with less
    damage. evaluations: of the cost.
    """

    counts: tuple[int, ...]
    cost: float
    damage: float
    is_met: bool
    is_exact: bool
    evaluations: int


def spend(
    widths: Sequence[Sequence[int]],
    curves: Sequence[Floats],
    cost: Callable[[Sequence[int]], float],
    target: float,
    margin: float = 0.0,
) -> Spending:
    """widths: per group, numbers of steps that may be removed, ascending from 0; curves: per group, damage after 0, 1, ... steps;
    cost: of the model as a function of the steps removed per group; target: the most it may be; margin: share of the damage by which
    swaps must be better, as they fit themselves to errors of the curves.
    """
    work = _Work(widths, curves, cost, target)
    start = (0,) * len(widths)
    if work.is_met(start):
        return work.spending(start, is_exact=True)
    table = work.table(start)
    if _adds_up(work, table):
        total = work.cost(start)
        packed = pack([total - t for t in table], work.damages, total - work.allowed)
        if packed is not None and work.is_met(packed.choice):
            return work.spending(packed.choice, packed.exact)
    low = _lowest(work)
    if not work.is_met(low):
        return work.spending(low)
    found = [low, _level(work)]
    descended = _descend(work)
    if descended is not None:
        found.append(descended)
    met = [_give_back(work, c) for c in found if work.is_met(c)]
    best = min(met, key=work.harm)
    swapped = _held(work, _swap(work, best))
    return work.spending(swapped if work.harm(swapped) < (1 - margin) * work.harm(best) else best)


def lowest(widths: Sequence[Sequence[int]], cost: Callable[[Sequence[int]], float]) -> Spending:
    """The lowest cost over the widths: for one that never rises as more goes, and for a sum over groups; else the lowest found, one group
    at a time.
    """
    work = _Work(widths, [np.zeros(max(w) + 1) for w in widths], cost, -np.inf)
    return work.spending(_lowest(work))


class _Work:
    """The problem in places of `widths`, with the costs that were evaluated."""

    def __init__(
        self,
        widths: Sequence[Sequence[int]],
        curves: Sequence[Floats],
        cost: Callable[[Sequence[int]], float],
        target: float,
    ) -> None:
        self.widths = [tuple(w) for w in widths]
        self.damages = [
            np.asarray(c, np.float64)[np.array(w, np.int64)] for w, c in zip(self.widths, curves, strict=True)
        ]
        self.target = target
        self._cost = cost
        self._known: dict[Choice, float] = {}
        self.total = self.cost((0,) * len(self.widths))
        self.allowed = target + ROUNDING * abs(self.total)

    def cost(self, choice: Choice) -> float:
        if choice not in self._known:
            self._known[choice] = float(self._cost(self.counts(choice)))
        return self._known[choice]

    def counts(self, choice: Choice) -> tuple[int, ...]:
        return tuple(w[i] for w, i in zip(self.widths, choice, strict=True))

    def is_met(self, choice: Choice) -> bool:
        return self.cost(choice) <= self.allowed

    def harm(self, choice: Choice) -> float:
        return float(sum(d[i] for d, i in zip(self.damages, choice, strict=True)))

    def table(self, choice: Choice) -> list[Floats]:
        """The real cost of every width of every group, the others as they are."""
        return [self._costs(choice, k) for k in range(len(self.widths))]

    def _costs(self, choice: Choice, k: int) -> Floats:
        """Of every width of group k; a straight line where the probes lie on one."""
        number = len(self.widths[k])
        places = np.arange(number)
        asked = np.unique(np.round(np.array(PROBES) * (number - 1)).astype(np.int64))
        if asked.size < number:
            found = np.array([self.cost(at(choice, k, i)) for i in asked.tolist()])
            steps = np.array(self.widths[k])
            line = np.interp(steps, steps[[0, -1]], found[[0, -1]])
            if np.abs(line[asked] - found).max() <= ALIKE * abs(self.total):
                return np.asarray(line, np.float64)
        return np.array([self.cost(at(choice, k, i)) for i in places.tolist()])

    def spending(self, choice: Choice, is_exact: bool = False) -> Spending:
        counts, met = self.counts(choice), self.is_met(choice)
        return Spending(counts, self.cost(choice), self.harm(choice), met, is_exact, len(self._known))


def at(choice: Choice, k: int, i: int) -> Choice:
    """The choice with place `i` for group `k`."""
    return (*choice[:k], i, *choice[k + 1 :])


def _adds_up(work: _Work, table: Sequence[Floats]) -> bool:
    """Do savings of several groups together equal the sum of each alone? Asked at a few choices."""
    last = tuple(len(w) - 1 for w in work.widths)
    asked = [last, tuple(i // 2 for i in last)]
    asked += [tuple(i if k % 2 == odd else i // 3 for k, i in enumerate(last)) for odd in (0, 1)]
    asked += [tuple(i * ((7 * k + 3 * n) % 5) // 4 for k, i in enumerate(last)) for n in (1, 2, 3)]
    for choice in asked:
        expected = work.total + sum(float(t[i] - work.total) for t, i in zip(table, choice, strict=True))
        if abs(work.cost(choice) - expected) > ALIKE * abs(work.total):
            return False
    return True


def _lowest(work: _Work) -> Choice:
    """The narrowest widths; where those do not meet the target, the best width of one group after another, as long as that helps."""
    choice = tuple(len(w) - 1 for w in work.widths)
    if work.is_met(choice):
        return choice
    for _ in range(PASSES[0]):
        before = choice
        for k, widths in enumerate(work.widths):
            choice = min((at(choice, k, i) for i in range(len(widths))), key=work.cost)
        if choice == before or work.is_met(choice):
            break
    return choice


def _level(work: _Work) -> Choice:
    """Every group as narrow as one level of damage allows: the lowest level found that meets the target, or the narrowest widths."""
    levels = np.unique(np.concatenate(work.damages))

    def choice(level: float) -> Choice:
        return tuple(int(np.flatnonzero(d <= max(level, d.min()))[-1]) for d in work.damages)

    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if work.is_met(choice(levels[middle])):
            high = middle
        else:
            low = middle + 1
    return choice(levels[high])


def _descend(work: _Work) -> Choice | None:
    """Along the hulls, the least damage per saving first; savings are measured anew whenever the cost should have fallen by an equal share.

    None where nothing saves any more, though the target is not met: groups that save only together.
    """
    passes = int(np.clip(EVALUATIONS // max(1, len(PROBES) * len(work.widths)), *PASSES))
    share = (work.target / work.total) ** (1 / passes) if work.target > 0 else 0.5
    now = (0,) * len(work.widths)
    for _ in range(3 * passes):
        total = work.cost(now)
        if total <= work.allowed:
            return now
        left = total - max(work.target, share * total)
        savings = []
        for k, costs in enumerate(work.table(now)):
            saving = total - costs
            saving[: now[k]] = -np.inf  # no way back here
            savings.append(saving)
        choice = list(now)
        for _, k, item in edges(savings, work.damages, now):
            saving = savings[k]
            further = np.arange(choice[k] + 1, item)
            enough = further[saving[further] - saving[choice[k]] >= left]
            item = int(enough[0]) if enough.size else item  # not farther than was measured well
            left -= float(saving[item] - saving[choice[k]])
            choice[k] = item
            if left <= 0:
                break
        if tuple(choice) == now:
            return None
        now = tuple(choice)
    return now if work.is_met(now) else None


def _give_back(work: _Work, choice: Choice) -> Choice:
    """Takes back what the target does not need, the most harmful first: the last moves may have gone past it."""
    stuck: set[int] = set()
    while True:
        gains = {k: d[i] - d[i - 1] for k, (d, i) in enumerate(zip(work.damages, choice, strict=True)) if i}
        gains = {k: gain for k, gain in gains.items() if k not in stuck and gain >= 0}
        if not gains:
            return choice
        k = max(gains, key=lambda k: gains[k])
        trial = at(choice, k, choice[k] - 1)
        if work.is_met(trial):
            choice = trial
        else:
            stuck.add(k)


def _swap(work: _Work, best: Choice, centre: Choice | None = None, held: int | None = None) -> Choice:
    """Moves of several groups at once that together do less damage than `best` and keep the target, as far as they are found.

    The best choice for savings as they are around `centre`, which is where the last one led, whether or not it met the target.
    held: a group that stays as it is in the centre.
    """
    centre = centre or best
    seen = {centre}
    for _ in range(SWAPS):
        savings, damages = [work.total - t for t in work.table(centre)], list(work.damages)
        now = sum(float(s[i]) for s, i in zip(savings, centre, strict=True))
        # the savings of the centre, and what it lacks or may lose of them
        need = now + work.cost(centre) - work.allowed
        if held is not None:
            savings[held], damages[held] = (x[held][[centre[held]]] for x in (savings, damages))
        first: Choice | None = None
        for _ in range(TIGHTER[len(best) <= FEW]):
            packed = pack(savings, damages, need, ROUGH)
            if packed is None:
                break
            found = packed.choice if held is None else at(packed.choice, held, centre[held])
            if work.harm(found) >= work.harm(best):
                break
            first = first or found
            if work.is_met(found):
                best = first = _give_back(work, found)
                break
            need += (work.cost(found) - work.allowed) / 4
        if first is None or first in seen:
            return best
        seen.add(first)
        if held is not None:
            first = at(first, held, centre[held])
        centre = first
    return best


def _held(work: _Work, best: Choice) -> Choice:
    """Swaps with one group held a little wider: what savings that do not add up hid from the others."""
    if len(best) > FEW:
        return best
    for k in sorted(range(len(best)), key=lambda k: -work.damages[k][best[k]]):
        if best[k]:
            best = _swap(work, best, at(best, k, best[k] - 1), k)
    return best
