"""What is run at once: samples are decided on in portions, and a portion that would take too much runs piece by piece.

Which samples are held out, and which positions of a layer are looked at, is decided portion by portion (`analyse/feeds.py`). How much of
a portion runs at once is another question, which memory answers. So that nothing but rounding depends on the answer, every run knows its
place in its portion, and whatever chooses, chooses portions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from onnxprune.analyse.batch import Batch
from onnxprune.analyse.samples import Place, Samples
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Feeds

ROOM = 1 << 28
"""Bytes that may lie between the layers in one run, if it is of more than one sample."""

Taking = Callable[[Feeds], float]


def growth(analysis: Analysis, feeds: Feeds) -> float:
    """How much larger feeds are than those whose shapes were observed."""
    seen = analysis.feeds[0]
    return sum(feeds[n].size for n in seen) / max(1, sum(a.size for a in seen.values()))


def taking(analysis: Analysis) -> Taking:
    """What lies between the layers in a run of some feeds: bytes as in the run that was observed, grown as the feeds are."""
    observed = between(analysis)
    return lambda feeds: observed * growth(analysis, feeds)


def between(analysis: Analysis) -> int:
    """Bytes of all tensors that are there at once in the run that was observed: at most, and of those that a larger feed makes larger,
    as if all were of float32.

    A tensor is there from the node that makes it to the last one that reads it.
    """
    seen = analysis.observation
    nodes = list(analysis.view.graph.walk())
    last = {name: k for k, node in enumerate(nodes) for name in node.inputs}
    last.update(dict.fromkeys(analysis.view.graph.outputs, len(nodes)))
    is_fixed = seen.shapes == seen.other_shapes

    def size(name: str) -> int:
        shape = seen.shapes.get(name, ())
        grows = is_fixed or any(seen.is_dynamic(name, axis) for axis in range(len(shape)))
        return 4 * prod(shape) if grows else 0

    now = most = 0
    leaving: dict[int, int] = {}
    for k, node in enumerate(nodes):
        for name in node.outputs:
            if name in last:
                now += size(name)
                leaving[last[name]] = leaving.get(last[name], 0) + size(name)
        most = max(most, now)
        now -= leaving.pop(k, 0)
    return most


def runs(feeds: Feeds, batch: Batch, taking: Taking | None = None) -> list[tuple[int, int]]:
    """The first and behind the last piece of a portion that runs at once: as many as `ROOM` has room for, and equally many each."""
    count = batch.count(feeds)
    if taking is None or count < 2:
        return [(0, count)]
    most = max(1, int(count * ROOM / max(taking(feeds), 1.0)))
    each = -(-count // -(-count // most))
    return [(k, min(k + each, count)) for k in range(0, count, each)]


def first_run(feeds: Feeds, batch: Batch, taking: Taking | None) -> Feeds:
    """What of a portion runs first."""
    return batch.part(feeds, *runs(feeds, batch, taking)[0])


def in_runs(samples: Samples, batch: Batch, taking: Taking | None) -> Samples:
    """Whole portions, cut into runs."""
    cut = [runs(f, batch, taking) for f in samples.feeds]
    if all(len(found) == 1 for found in cut):
        return samples
    rows: list[Feeds] = []
    labels: list[Feeds] = []
    places: list[Place] = []
    for k, (feeds, found) in enumerate(zip(samples.feeds, cut, strict=True)):
        has_labels = k < len(samples.labels)
        whole = feeds | samples.labels[k] if has_labels else feeds
        for first, last in found:
            part = batch.part(whole, first, last)
            rows.append({n: part[n] for n in feeds})
            if has_labels:
                labels.append({n: part[n] for n in samples.labels[k]})
            places.append(Place(k, first, last - first, batch.count(feeds)))
    of = [p.portion for p in places]
    return replace(
        samples,
        feeds=tuple(rows),
        held=tuple(samples.held[k] for k in of),
        sizes=tuple(batch.size(f) for f in rows),
        given=sum(k < samples.given for k in of),
        labels=tuple(labels),
        source_of=tuple(samples.source_of[k] for k in of) if samples.source_of else (),
        places=tuple(places),
    )
