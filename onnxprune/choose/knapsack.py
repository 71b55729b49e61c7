"""The multiple-choice knapsack: one item of every group, so that the savings suffice and the damage is least. Exact.

    minimise  sum_k damage_k[i_k]   such that  sum_k saving_k[i_k] >= need

The lower convex hulls of the groups' (saving, damage) points give a solution and a multiplier; dynamic programming over the groups keeps
the states that no other dominates and whose Lagrangian bound is below the best solution known (Kellerer, Pferschy and Pisinger,
*Knapsack Problems*, 2004, chapter 11). Savings may be of any magnitude and sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxprune.groups.units import Ids
from onnxprune.ops.linear import Floats

STATES = 4000
"""States that are kept after a group; where there are more, those with the least bound stay and the result is not proved least."""


@dataclass(frozen=True)
class Packing:
    """choice: the item of each group; exact: no choice that saves enough does less damage."""

    choice: tuple[int, ...]
    exact: bool


def hull(saving: Floats, damage: Floats, start: int = 0) -> list[int]:
    """Items on the lower convex hull of (saving, damage), from item `start` to the largest saving, by rising saving."""
    best: list[int] = [start]
    for i in np.lexsort((damage, saving)).tolist():
        if saving[i] <= saving[start]:
            continue
        while len(best) > 1 and _slope(saving, damage, best[-2], best[-1]) >= _slope(saving, damage, best[-2], i):
            best.pop()
        if saving[i] > saving[best[-1]]:
            best.append(i)
    return best


def _slope(saving: Floats, damage: Floats, i: int, j: int) -> float:
    return float((damage[j] - damage[i]) / (saving[j] - saving[i]))


def edges(savings: Sequence[Floats], damages: Sequence[Floats], starts: Sequence[int]) -> list[tuple[float, int, int]]:
    """`(damage per saving, group, item)` of every step along the hulls, the least first."""
    found = []
    for k, (s, d, start) in enumerate(zip(savings, damages, starts, strict=True)):
        corners = hull(s, d, start)
        found += [(_slope(s, d, i, j), k, j) for i, j in pairwise(corners)]
    return sorted(found, key=lambda e: e[0])  # stable: along a hull the slopes do not fall


def pack(savings: Sequence[Floats], damages: Sequence[Floats], need: float, states: int = STATES) -> Packing | None:
    """savings, damages: `[items]` of each group. None where no choice saves `need`. states: kept after a group."""
    if need > sum(float(s.max()) for s in savings):
        return None
    known, rate = _by_hulls(savings, damages, need)
    most = _sum(damages, known)
    margin = 1e-12 * max(1e-300, sum(float(np.abs(d).max()) for d in damages))
    costs = [d - rate * s for s, d in zip(savings, damages, strict=True)]
    rest = np.append(
        np.cumsum([c.min() for c in costs][::-1])[::-1], 0.0
    )  # least Lagrangian cost of the groups from k on
    gain = np.append(np.cumsum([float(s.max()) for s in savings][::-1])[::-1], 0.0)
    saved, harm = np.zeros(1), np.zeros(1)
    trail: list[tuple[Ids, Ids]] = []
    exact = True
    for k, (s, d) in enumerate(zip(savings, damages, strict=True)):
        items = _undominated(s, d)
        all_saved = (saved[:, None] + s[items]).ravel()
        all_harm = (harm[:, None] + d[items]).ravel()
        bound = all_harm + rate * (need - all_saved) + rest[k + 1]
        slack = 1e-12 * (abs(need) + np.abs(all_saved))
        alive = np.flatnonzero((bound <= most + margin) & (all_saved + gain[k + 1] >= need - slack))
        alive = alive[_undominated(all_saved[alive], all_harm[alive])]
        if alive.size > states:
            alive = np.sort(alive[np.argsort(bound[alive], kind="stable")[:states]])
            exact = False
        if not alive.size:
            return Packing(known, False)
        trail.append((alive // items.size, items[alive % items.size]))
        saved, harm = all_saved[alive], all_harm[alive]
    at = int(np.lexsort((-saved, harm))[0])
    if harm[at] > most and not exact:
        return Packing(known, False)
    choice = []
    for parent, item in reversed(trail):
        choice.append(int(item[at]))
        at = int(parent[at])
    return Packing(tuple(reversed(choice)), exact)


def _by_hulls(savings: Sequence[Floats], damages: Sequence[Floats], need: float) -> tuple[tuple[int, ...], float]:
    """A choice along the hulls that saves enough, and the damage per saving of its last step."""
    choice = [int(np.lexsort((-s, d))[0]) for s, d in zip(savings, damages, strict=True)]
    saved, rate = _sum(savings, choice), 0.0
    for slope, k, item in edges(savings, damages, choice):
        if saved >= need:
            break
        saved += float(savings[k][item] - savings[k][choice[k]])
        choice[k], rate = item, slope
    return tuple(choice), max(0.0, rate)


def _undominated(saved: Floats, harm: Floats) -> Ids:
    """Where no other entry saves at least as much for no more harm."""
    order = np.lexsort((harm, -saved))
    least = np.minimum.accumulate(harm[order])
    is_better = np.append(True, harm[order][1:] < least[:-1]) if order.size else np.zeros(0, bool)
    return np.sort(order[is_better])


def _sum(tables: Sequence[Floats], choice: Sequence[int]) -> float:
    return float(sum(t[i] for t, i in zip(tables, choice, strict=True)))
