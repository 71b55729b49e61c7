"""Training samples: the user's feeds cut into the smallest pieces that the model takes, and batches of them in a seeded order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ValueInfoProto

from onnxprune.groups.observation import Feeds
from onnxprune.runtime import declared_batch

HELD = 0.1
MAX_HELD = 1024


@dataclass(frozen=True)
class Pool:
    """units: single samples (or whole batches, where the model fixes the batch), labels included.

    cut: arrays with one part per sample; all others go with every batch. joins: may several units run at once?
    """

    units: tuple[Feeds, ...]
    cut: frozenset[str]
    joins: bool

    def joined(self, indices: Sequence[int]) -> Feeds:
        """Several units as one feed."""
        parts = [self.units[i] for i in indices]
        if len(parts) == 1:
            return parts[0]
        return {n: np.concatenate([p[n] for p in parts]) if n in self.cut else parts[0][n] for n in parts[0]}

    def bundles(self, indices: Sequence[int], most: int) -> list[list[int]]:
        """Indices in groups that can be joined: of equal shapes, at most `most` each; in order of appearance."""
        most = most if self.joins else 1
        groups: dict[tuple[tuple[int, ...], ...], list[list[int]]] = {}
        for i in indices:
            shapes = tuple(self.units[i][n].shape for n in sorted(self.cut))
            rows = groups.setdefault(shapes, [[]])
            if len(rows[-1]) == most:
                rows.append([])
            rows[-1].append(i)
        return [b for rows in groups.values() for b in rows]


def pool(feeds: Sequence[Feeds], inputs: Sequence[ValueInfoProto], accepts: Callable[[Feeds], bool]) -> Pool:
    """accepts: does the model run on these? A first axis that is dynamic may be something else than the batch."""
    names = [v.name for v in inputs]
    units: list[Feeds] = []
    cut: set[str] = set()
    for feed in feeds:
        parts, names_cut = _cut(feed, inputs)
        units += parts
        cut |= names_cut
    fixed = any(declared_batch(v) for v in inputs)
    if not accepts({n: units[0][n] for n in names}):
        units, cut, fixed = list(feeds), set(names), True
    found = Pool(tuple(units), frozenset(cut), not fixed and len(units) > 1)
    first = found.bundles(range(len(units)), 2)[0] if found.joins else []
    if len(first) == 2 and not accepts({n: a for n, a in found.joined(first).items() if n in names}):
        return Pool(found.units, found.cut, False)
    return found


def _cut(feed: Feeds, inputs: Sequence[ValueInfoProto]) -> tuple[list[Feeds], set[str]]:
    """One feed per sample, and the arrays that were cut."""
    rows = {v.name: declared_batch(v) or 1 for v in inputs if feed[v.name].ndim}
    counts = {feed[n].shape[0] // r for n, r in rows.items()}
    if len(counts) != 1:
        return [feed], set(rows)
    count = counts.pop()
    for name in feed.keys() - {v.name for v in inputs}:
        if feed[name].ndim and count and feed[name].shape[0] % count == 0:
            rows[name] = feed[name].shape[0] // count
    parts = [{n: a[k * rows[n] : (k + 1) * rows[n]] if n in rows else a for n, a in feed.items()} for k in range(count)]
    return parts, set(rows)


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on, and to judge by: a tenth, at least one."""
    order = np.random.default_rng([seed, 1]).permutation(count).tolist()
    held = min(max(1, round(HELD * count)), MAX_HELD, count - 1)
    return sorted(order[held:]), sorted(order[:held])


def batches(
    pool: Pool, indices: Sequence[int], size: int, seed: int, start: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """(step, indices) for ever, from step `start` on; every epoch is in an order of its own, a function of seed and epoch alone."""
    per_epoch = max(1, len(indices) // size)
    epoch, skip = divmod(start, per_epoch)
    step = start
    while True:
        rng = np.random.default_rng([seed, 2, epoch])
        order = [indices[i] for i in rng.permutation(len(indices))]
        for k in range(skip, per_epoch):
            yield step, order[k * size : (k + 1) * size] if len(order) >= size else order
            step += 1
        epoch, skip = epoch + 1, 0
