"""Where samples come from, so that whole sources are held out: crops of one photograph tell nothing new of each other.

A held-out sample is a test only if nothing like it was fitted. Samples of one source (one photograph, one recording, one document) go
the same way: all fitted, all held out or all set aside. A source is what the array `groups` of the data says (one label per sample,
numbers or texts); else, in a folder, a file, or the subfolder that it lies in; else every sample is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from onnxprune.analyse.batch import Batch
from onnxprune.errors import BadInputError, TargetNotReachableError
from onnxprune.groups.observation import Array, Feeds

GROUPS = "groups"
TAG = "onnxprune source"  # among the arrays of a feed: the source of each of its pieces
Kind = Literal["sample", "group", "file", "folder"]


@dataclass(frozen=True)
class Sources:
    """kind: what is one source. labels: by feed, one for all samples (no axis) or one each (`[n]`); none where each sample is one."""

    kind: Kind = "sample"
    labels: tuple[Array, ...] = ()


BY_SAMPLE = Sources()
FITTED, HELD = 0, 1
FOLDS = 4  # one source of so many is held out


@dataclass(frozen=True)
class Aside:
    """That sources are to be set aside, which no step looks at until finished models are judged by them (`--max-drop`).

    least: so many show what they are to show even if nothing is lost. what: what they are to show, for messages.
    """

    least: int
    what: str


AMPLE = 3.0  # times `least`, so that a little may be lost ...
USUAL, HALF, MOST = (
    0.2,
    0.5,
    0.75,
)  # ... and, of all sources: at least; at most, for that; at most, if `least` asks for it
ENOUGH = 4096  # more are not set aside, unless `least` asks for it
LARGE = 0.25  # a source with more of all samples than this is always fitted


def tagged(feeds: Sequence[Feeds], batch: Batch, sources: Sources) -> list[Feeds]:
    """Feeds with the number of the source of each piece under `TAG`; as they are where each piece is a source of its own.

    Pieces that hold samples of several sources (a model that fixes its batch) tie these to one.
    """
    counts = [batch.count(f) for f in feeds]
    pieces = int(sum(counts))
    if not sources.labels:
        return list(feeds)
    at, labels = [], []
    for start, count, label in zip(np.cumsum([0, *counts]), counts, sources.labels, strict=False):
        if label.ndim and label.size % count:
            raise BadInputError(f"'{GROUPS}' has {label.size} labels for {count} samples; give each sample one.")
        each = label.size // count if label.ndim else 1
        at.append(start + np.repeat(np.arange(count), each))
        labels.append(np.broadcast_to(label.astype(str).ravel(), count * each))
    rows = np.concatenate(at)
    known, columns = np.unique(np.concatenate(labels), return_inverse=True)
    shape = (pieces + len(known),) * 2
    ties = csr_array((np.ones(len(rows), bool), (rows, pieces + columns)), shape=shape)
    _, found = connected_components(ties, directed=False)
    of = np.unique(found[:pieces], return_inverse=True)[1]
    if len(np.unique(of)) == pieces:
        return list(feeds)
    bounds = np.cumsum([0, *counts])
    tags = [of[a:b] for a, b in pairwise(bounds)]
    return [f | {TAG: tag} for f, tag in zip(feeds, tags, strict=True)]


def set_aside(
    feeds: Sequence[Feeds], batch: Batch, limit: int | None, aside: Aside, seed: int, kind: Kind
) -> tuple[list[Feeds], list[Feeds], list[int]]:
    """Feeds (tagged or not) without the sources that are set aside; portions of these, of one source each; and whose they are.

    Which ones is chance, so that what holds for them holds for others of their kind, however the data are ordered. limit: samples that
    the others can make use of. Sources are numbered in their chance order. Raises `TargetNotReachableError` where there are too few.
    """
    tags = _tags(feeds, batch)
    known, sizes = np.unique(np.concatenate(tags), return_counts=True)
    able = known[sizes <= max(1, int(LARGE * sizes.sum()))]
    wanted = _wanted(len(able), aside.least, limit if len(known) == sizes.sum() else None)
    if wanted is None:
        one = "" if kind == "sample" else f" (the samples of one {kind} tell nothing new of each other)"
        raise TargetNotReachableError(
            f"{aside.what} needs at least {ceil(aside.least / MOST):,} {kind}s{one}, {aside.least:,} of them set aside, to be shown "
            f"even if nothing is lost; there are {len(known):,}. Give more --data, or allow more."
        )
    order = np.random.default_rng([seed, 5]).permutation(able)[:wanted]
    number = dict(zip(order.tolist(), range(wanted), strict=True))
    rest, apart = [], []
    for feed, tag in zip(feeds, tags, strict=True):
        left = np.flatnonzero(~np.isin(tag, order))
        if left.size:
            rest.append(feed if left.size == tag.size else batch.picked(feed, left))
        bare = {n: a for n, a in feed.items() if n != TAG}
        for of in np.intersect1d(tag, order).tolist():
            apart.append((number[of], batch.picked(bare, np.flatnonzero(tag == of))))
    apart.sort(key=lambda x: x[0])
    return rest, [f for _, f in apart], [n for n, _ in apart]


def _tags(feeds: Sequence[Feeds], batch: Batch) -> list[Array]:
    """By feed, the source of each piece."""
    ends = np.cumsum([0, *(batch.count(f) for f in feeds)])
    return [f.get(TAG, np.arange(a, b)) for f, (a, b) in zip(feeds, pairwise(ends), strict=True)]


def _wanted(count: int, least: int, limit: int | None) -> int | None:
    """How many of `count` sources to set aside; None where they are too few."""
    if least > MOST * count:
        return None
    wanted = min(max(AMPLE * least, USUAL * count), HALF * count)
    spare = 0 if limit is None else count - limit
    return max(least, min(max(int(wanted), spare), ENOUGH))


def parts(count: int) -> Array:
    """What becomes of each of `count` sources, evenly spread: `FITTED` or `HELD`."""
    result = np.full(count, FITTED)
    fold = FOLDS if count >= FOLDS else 2
    result[fold - 1 :: fold] = HELD
    return result


def parted(feeds: Sequence[Feeds], batch: Batch, limit: int | None) -> tuple[list[list[Feeds]], Array]:
    """Tagged feeds cut into what is fitted and what is held out, whole sources each; and what became of each source.

    Sources are dealt out by their size, the largest first, so that the largest are fitted.
    """
    left = sum(batch.count(f) for f in feeds) if limit is None else limit
    chosen: list[Feeds] = []
    for feed in feeds:
        count = min(left, batch.count(feed))
        left -= count
        if count:
            chosen.append(batch.picked(feed, np.arange(count)))
    tags = np.concatenate([f[TAG] for f in chosen])
    known, sizes = np.unique(tags, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    found = np.empty(len(known), int)
    found[order] = parts(len(known))
    result: list[list[Feeds]] = [[], []]
    for feed in chosen:
        of = found[np.searchsorted(known, feed[TAG])]
        for part, into in enumerate(result):
            pieces = np.flatnonzero(of == part)
            if pieces.size:
                into.append(batch.picked(feed, pieces))
    return result, found
