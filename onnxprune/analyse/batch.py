"""Which axis of each input holds samples? Found by running the model, as names and positions of axes need not tell.

Most models have the batch first: `[N, C, H, W]`. Speech comes as `[T, B, F]`, a table of categories as `[26, B]`, a picture as `[C, H, W]`
without any. An axis is the batch where two samples that are run together give what they give one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.runtime import declared_batch


class Runner(Protocol):
    """A model to run (`runtime.Session`). draws: it draws random numbers."""

    draws: bool

    def answers(self, feeds: Feeds) -> list[Array]:
        """All outputs as arrays; raises `BadInputError` where the model refuses."""


APART = 0.03  # of the outputs' spread: codes of a batch quantized as a whole differ by less, lost context by more


@dataclass(frozen=True)
class Batch:
    """How feeds are cut into samples, and samples joined.

    axes: by input, the axis that holds samples; inputs that are not in it go with every sample. With none, every feed is one sample.
    rows: by input, how many positions of that axis the model takes at once, where it fixes that; else 1.
    names: of all inputs; other arrays of a feed are labels, whose first axis holds samples.
    is_fixed: the model takes so many rows and no others. each: samples in them.
    """

    axes: dict[str, int]
    rows: dict[str, int]
    names: frozenset[str]
    is_fixed: bool = False
    each: int = 1

    def agrees(self, feed: Feeds) -> bool:
        """Have all arrays equally many samples?"""
        return len(self._counts(feed)) <= 1

    def count(self, feed: Feeds) -> int:
        """Pieces that a feed can be cut into."""
        counts = self._counts(feed)
        return max(1, counts.pop()) if len(counts) == 1 else 1

    def size(self, feed: Feeds) -> int:
        """Samples in a feed."""
        return self.count(feed) * self.each

    def cut(self, feed: Feeds) -> dict[str, tuple[int, int]]:
        """(axis, rows of one piece) of every array that is cut, labels included."""
        count = self.count(feed)
        places = {n: (a, self.rows[n]) for n, a in self.axes.items()}
        for name in feed.keys() - self.names:
            array = feed[name]
            if self.axes and array.ndim and array.shape[0] and array.shape[0] % count == 0:
                places[name] = (0, array.shape[0] // count)
        return places

    def part(self, feed: Feeds, first: int, last: int) -> Feeds:
        """Pieces from `first` up to `last`."""
        result = dict(feed)
        for name, (axis, rows) in self.cut(feed).items():
            where = [slice(None)] * axis + [slice(first * rows, last * rows)]
            result[name] = feed[name][tuple(where)]
        return result

    def picked(self, feed: Feeds, pieces: Array) -> Feeds:
        """The pieces with these numbers, in their order."""
        result = dict(feed)
        for name, (axis, rows) in self.cut(feed).items():
            at = (np.asarray(pieces)[:, None] * rows + np.arange(rows)).ravel()
            result[name] = np.take(feed[name], at, axis)
        return result

    def joined(self, feeds: Sequence[Feeds]) -> Feeds:
        """Several feeds as one."""
        result = dict(feeds[0])
        for name in feeds[0]:
            if name in self.axes or name not in self.names:
                result[name] = np.concatenate([_row(f[name]) for f in feeds], axis=self.axes.get(name, 0))
        return result

    def kind(self, feed: Feeds) -> tuple[object, ...]:
        """Equal for feeds that can be joined."""
        found: list[object] = []
        for name in sorted(self.names):
            array = feed[name]
            axis = self.axes.get(name)
            if axis is None:
                found.append((array.shape, array.tobytes()))
            else:
                found.append(array.shape[:axis] + array.shape[axis + 1 :])
        return tuple(found)

    def _counts(self, feed: Feeds) -> set[int]:
        return {feed[n].shape[a] // self.rows[n] for n, a in self.axes.items()}


def _row(array: Array) -> Array:
    """A single label counts as a row."""
    return array if array.ndim else array[None]


def find_batch(feeds: Sequence[Feeds], inputs: Sequence[onnx.ValueInfoProto], model: Runner) -> Batch:
    """The axes along which the feeds hold samples that do not depend on each other.

    feeds: one, whose samples are stacked; or several, as from a folder, which are samples themselves where their first axes do not hold
    any. model: to run them.
    """
    first = first_axes(feeds, inputs)
    is_one = len(feeds) == 1
    if first is not None:
        seen = _seen(first, feeds, model)
        if seen == "apart" or (seen in ("unclear", "single") and is_one):
            return _counted(first, feeds[0], inputs, model)
    for other in _others(feeds[0], inputs) if is_one else ():
        if _seen(other, feeds, model) == "apart":
            return other
    return _counted(Batch({}, {}, frozenset(v.name for v in inputs)), feeds[0], inputs, model)


def first_axes(feeds: Sequence[Feeds], inputs: Sequence[onnx.ValueInfoProto]) -> Batch | None:
    """The first axis of every input that has one and is not of the declared size already; None where their sizes do not fit.

    Where an input's first axis is declared, so many rows are one piece.
    """
    stacked = [v for v in inputs if any(f[v.name].ndim and f[v.name].shape[0] > declared_batch(v) for f in feeds)]
    rows = {v.name: declared_batch(v) or 1 for v in stacked}
    fixed = any(declared_batch(v) for v in (stacked or inputs))
    found = Batch(dict.fromkeys(rows, 0), rows, frozenset(v.name for v in inputs), fixed)
    return found if all(found.agrees(f) for f in feeds) else None


def _others(feed: Feeds, inputs: Sequence[onnx.ValueInfoProto]) -> Iterator[Batch]:
    """Axes that share a name, or a size where they have no names: those of most inputs first, then the foremost."""
    groups: dict[str | int, dict[str, int]] = {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, size in enumerate(feed[value.name].shape):
            dim = dims[axis] if axis < len(dims) else onnx.TensorShapeProto.Dimension()
            if not dim.dim_value:
                groups.setdefault(dim.dim_param or size, {}).setdefault(value.name, axis)
    names = frozenset(v.name for v in inputs)
    for axes in sorted(groups.values(), key=lambda a: (-len(a), min(a.values()))):
        found = Batch(axes, dict.fromkeys(axes, 1), names)
        if found.agrees(feed) and found.count(feed) > 1:
            yield found


def _counted(batch: Batch, feed: Feeds, inputs: Sequence[onnx.ValueInfoProto], model: Runner) -> Batch:
    """With the samples that a batch of fixed size holds: as many as its rows, if the outputs have such rows too."""
    sizes = {declared_batch(v) for v in inputs if feed[v.name].ndim and (not batch.axes or v.name in batch.axes)}
    if len(sizes) != 1 or min(sizes) < 2:
        return batch
    size = sizes.pop()
    try:
        outputs = model.answers(_fed(batch, batch.part(feed, 0, 1)))
    except BadInputError:
        return batch
    return replace(batch, each=size) if any(o.ndim and o.shape[0] == size for o in outputs) else batch


def accepts(model: Runner, feeds: Feeds) -> bool:
    """Does the model run on these?"""
    try:
        model.answers(feeds)
    except BadInputError:
        return False
    return True


def _fed(batch: Batch, feed: Feeds) -> Feeds:
    return {n: a for n, a in feed.items() if n in batch.names}


def _seen(batch: Batch, feeds: Sequence[Feeds], model: Runner) -> str:
    """What pairs of pieces show: `mixed` (they depend on each other), `refused`, `apart`, `unclear`; `single` where there is no pair."""
    verdicts = {_pair(batch, pieces, whole, model) for pieces, whole in _pairs(batch, feeds)}
    return next((v for v in ("refused", "mixed", "apart", "unclear") if v in verdicts), "single")


def _pair(batch: Batch, pieces: list[Feeds], whole: Feeds | None, model: Runner) -> str:
    try:
        single = [model.answers(_fed(batch, p)) for p in pieces]
        if whole is None:
            return "apart"
        both, again = model.answers(_fed(batch, whole)), model.answers(_fed(batch, pieces[0]))
    except BadInputError:
        return "refused"
    verdicts = set()
    for together, a, b, repeated in zip(both, *single, again, strict=True):
        if a.shape == repeated.shape and np.array_equal(
            a, repeated, equal_nan=a.dtype.kind in "fc"
        ):  # else it is random
            verdicts.add(_compared(together, a, b, model.draws))
    return next((v for v in ("mixed", "apart") if v in verdicts), "unclear")


def _pairs(batch: Batch, feeds: Sequence[Feeds]) -> Iterator[tuple[list[Feeds], Feeds | None]]:
    """Two pieces each, and both together where the model may take that: of the first feed and the largest one, else of two feeds."""
    several = [f for f in feeds if batch.count(f) > 1]
    chosen = [several[0], max(several, key=lambda f: sum(a.size for a in _fed(batch, f).values()))] if several else []
    for feed in chosen if len(several) > 1 else chosen[:1]:
        whole = None if batch.is_fixed else batch.part(feed, 0, 2)
        yield [batch.part(feed, 0, 1), batch.part(feed, 1, 2)], whole
    known: dict[tuple[object, ...], Feeds] = {}
    for feed in feeds if batch.axes and not batch.is_fixed and not several else ():
        other = known.setdefault(batch.kind(feed), feed)
        if other is not feed:
            yield [other, feed], batch.joined([other, feed])
            return


def _compared(whole: Array, a: Array, b: Array, draws: bool) -> str:
    """Is an output of both pieces together the outputs of the pieces, side by side along one axis? By size alone where it is random."""
    if not whole.ndim == a.ndim == b.ndim:
        return "unclear"
    longer = [k for k in range(whole.ndim) if whole.shape[k] != a.shape[k] or whole.shape[k] != b.shape[k]]
    if len(longer) != 1 or whole.shape[longer[0]] != a.shape[longer[0]] + b.shape[longer[0]] or not whole.size:
        return "unclear"
    if draws:
        return "apart"
    kind: type = np.complex128 if whole.dtype.kind == "c" else np.float64
    x: Array = whole.astype(kind)
    y: Array = np.concatenate([a, b], axis=longer[0]).astype(kind)
    finite = np.isfinite(x) & np.isfinite(y)
    if whole.dtype.kind not in "fc":  # labels and indices: some may count samples
        return "unclear" if (x != y).any() else "apart"
    if not finite.any():
        return "unclear"
    apart = float(np.sqrt(np.square(np.abs(x[finite] - y[finite])).mean()))
    return "apart" if apart <= APART * float(x[finite].std()) + 1e-6 * float(np.abs(x[finite]).max()) else "mixed"
