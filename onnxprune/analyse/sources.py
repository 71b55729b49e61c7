"""Where samples come from, so that whole sources are held out: crops of one photograph tell nothing new of each other.

A held-out sample is a test only if nothing like it was fitted. Samples of one source (one photograph, one recording, one document) go
the same way, all fitted or all held out. A source is what the array `groups` of the data says (one label per sample, numbers or texts);
else, in a folder, a file, or the subfolder that it lies in; else every sample is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from onnxprune.analyse.batch import Batch
from onnxprune.errors import BadInputError
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
FITTED, HELD, UNSEEN = 0, 1, 2
ASIDE = 5  # one source of so many is set aside to judge the finished model
FOLDS = 4  # and one of so many others is held out


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


def parts(count: int, aside: bool) -> Array:
    """What becomes of each of `count` sources, evenly spread: `FITTED`, `HELD`, or, with `aside`, `UNSEEN`."""
    result = np.full(count, FITTED)
    if aside:
        result[ASIDE // 2 :: ASIDE] = UNSEEN
    rest = np.flatnonzero(result == FITTED)
    fold = FOLDS if len(rest) >= FOLDS else 2
    result[rest[fold - 1 :: fold]] = HELD
    return result


def parted(feeds: Sequence[Feeds], batch: Batch, limit: int | None, aside: bool) -> tuple[list[list[Feeds]], Array]:
    """Tagged feeds cut into what is fitted, held out and set aside, whole sources each; and what became of each source.

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
    found[order] = parts(len(known), aside)
    result: list[list[Feeds]] = [[], [], []]
    for feed in chosen:
        of = found[np.searchsorted(known, feed[TAG])]
        for part, into in enumerate(result):
            pieces = np.flatnonzero(of == part)
            if pieces.size:
                into.append(batch.picked(feed, pieces))
    return result, found
