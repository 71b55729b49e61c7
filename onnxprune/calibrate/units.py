"""Layers in different branches that share a weight: they are looked at, and fitted, together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.ops.layer import LinearLayer

Unit = list[LinearLayer]


def units_of(layers: Sequence[LinearLayer], steps: Stepwise) -> list[Unit]:
    """Layers in different branches whose one weight nothing else reads are one unit, others are alone.

    After all layers before them, as far as branches that use the same weights in another order let them.
    """
    if not steps.routing.guards:
        return [[x] for x in layers]
    readers = steps.readers()
    stored: dict[str, Unit] = defaultdict(list)
    for layer in layers:
        stored[steps.source(layer.w)].append(layer)
    units = []
    for source, unit in stored.items():
        units += [unit] if _is_one(source, unit, steps, readers) else [[x] for x in unit]
    return _ordered(units, steps)


def _is_one(source: str, unit: Unit, steps: Stepwise, readers: Mapping[str, Sequence[int]]) -> bool:
    names = {x.w for x in unit}
    theirs = [steps.nodes[x.node] for x in unit]
    if any(not steps.routing.excludes(a, b) for k, a in enumerate(theirs) for b in theirs[:k]):
        return False
    if any(len(readers[n]) != sum(x.w == n for x in unit) for n in names):
        return False
    if source not in names and len(readers[source]) != len(names):
        return False
    first, *others = (x.linear.matrix(steps.constant(x.w)) for x in unit)
    return all(np.array_equal(first, m) for m in others)


def _ordered(units: list[Unit], steps: Stepwise) -> list[Unit]:
    of_node = {x.node: k for k, unit in enumerate(units) for x in unit}
    before = [
        {of_node[n] for x in unit for n in steps.before(x.x, of_node.__contains__) if n in of_node} for unit in units
    ]
    left = sorted(range(len(units)), key=lambda k: units[k][0].node)
    done: list[int] = []
    while left:
        ready = next((k for k in left if not before[k].intersection(left) - {k}), left[0])
        left.remove(ready)
        done.append(ready)
    return [units[k] for k in done]
