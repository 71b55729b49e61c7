"""Training samples: the user's feeds cut into the smallest pieces that the model takes, and batches of them in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ValueInfoProto

from onnxprune.analyse.batch import Batch, Runner, accepts, find_batch
from onnxprune.analyse.feeds import merged
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.sources import BY_SAMPLE, TAG, Sources, tagged
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds

HELD = 0.1
MAX_HELD = 1024


@dataclass(frozen=True)
class Pool:
    """units: single samples (or whole batches, where the model fixes the batch), labels included.

    axes: of the arrays that have one part per sample, the axis along which they are joined; all others go with every batch.
    joins: may several units run at once?
    sources: by unit, the number of the source that it comes from (`analyse/sources.py`).
    """

    units: tuple[Feeds, ...]
    axes: Mapping[str, int]
    joins: bool
    sources: tuple[int, ...]

    def joined(self, indices: Sequence[int]) -> Feeds:
        """Several units as one feed."""
        parts = [self.units[i] for i in indices]
        if len(parts) == 1:
            return parts[0]
        return {
            n: np.concatenate([p[n] for p in parts], axis=self.axes[n]) if n in self.axes else parts[0][n]
            for n in parts[0]
        }

    def bundles(self, indices: Sequence[int], most: int) -> list[list[int]]:
        """Indices in groups that can be joined: of equal shapes, at most `most` each; in order of appearance."""
        most = most if self.joins else 1
        groups: dict[tuple[tuple[int, ...], ...], list[list[int]]] = {}
        for i in indices:
            shapes = tuple(self.units[i][n].shape for n in sorted(self.axes))
            rows = groups.setdefault(shapes, [[]])
            if len(rows[-1]) == most:
                rows.append([])
            rows[-1].append(i)
        return [b for rows in groups.values() for b in rows]


def pool(
    feeds: Sequence[Feeds],
    inputs: Sequence[ValueInfoProto],
    model: Runner,
    most: int | None = None,
    sources: Sources = BY_SAMPLE,
) -> Pool:
    """model: to run, to see which axis holds samples (`analyse/batch.py`). most: samples to take."""
    batch = find_batch(feeds, inputs, model)
    units: list[Feeds] = []
    axes: dict[str, int] = {}
    for feed in merged(tagged(feeds, batch, sources), batch):
        units += [batch.part(feed, k, k + 1) for k in range(batch.count(feed))]
        axes |= {n: axis for n, (axis, _) in batch.cut(feed).items() if n != TAG}
    own, units = _untagged(units[:most])

    def fits(feed: Feeds) -> bool:
        return accepts(model, {n: a for n, a in feed.items() if n in batch.names})

    if not fits(units[0]):
        whole = tagged(feeds, Batch({}, {}, batch.names), sources)
        own, units = _untagged(whole[:most])
        return Pool(tuple(units), dict.fromkeys(batch.names, 0), False, own)
    found = Pool(tuple(units), axes, bool(batch.axes) and not batch.is_fixed and len(units) > 1, own)
    first = found.bundles(range(len(units)), 2)[0] if found.joins else []
    if len(first) == 2 and not fits(found.joined(first)):
        return replace(found, joins=False)
    return found


def _untagged(units: Sequence[Feeds]) -> tuple[tuple[int, ...], list[Feeds]]:
    """The number of each one's source, and the arrays without it."""
    numbers = tuple(int(u[TAG][0]) if TAG in u else k for k, u in enumerate(units))
    return numbers, [{n: a for n, a in u.items() if n != TAG} for u in units]


@dataclass(frozen=True)
class Material:
    """training, held: the units of the pool to train on, and those to judge by."""

    pool: Pool
    training: list[int]
    held: list[int]


def drawn(found: Pool, seed: int) -> Material:
    """A tenth of the samples, whole sources, judges."""
    return Material(found, *split(found.sources, seed))


def calibrated(samples: Samples, inputs: Sequence[ValueInfoProto], model: Runner) -> Material:
    """The user's calibration inputs: what the repair was fitted to is trained on, what it held out judges. Raises `BadInputError`
    where nothing was held out.
    """
    fitted, held = (
        [f for f, out in zip(samples.feeds[: samples.given], samples.held, strict=False) if out == which]
        for which in (False, True)
    )
    if not fitted or not held:
        raise BadInputError(
            f"--tune trains on some inputs and judges by others, and all of --data are of one {samples.held_by}; give more of them."
        )
    labels = (np.asarray("fitted"),) * len(fitted) + (np.asarray("held"),) * len(held)
    found = pool([*fitted, *held], inputs, model, sources=Sources("group", labels))
    first = found.sources[0]  # a fitted one: pieces keep their order
    training = [k for k, source in enumerate(found.sources) if source == first]
    return Material(found, training, [k for k, source in enumerate(found.sources) if source != first])


def split(sources: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Units to train on, and to judge by: a tenth, at least one, and whole sources. sources: by unit; at least two."""
    known, of, sizes = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 1]).permutation(len(known))
    before = np.cumsum(sizes[order]) - sizes[order]
    wanted = min(max(1, round(HELD * len(of))), MAX_HELD)
    chosen = order[: max(1, min(int((before < wanted).sum()), len(known) - 1))]
    out = np.isin(of, chosen)
    return np.flatnonzero(~out).tolist(), np.flatnonzero(out).tolist()


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
