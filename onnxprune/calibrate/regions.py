"""What the calibration inputs showed of an output without classes: channels and places that were ever active, or the span of its values.

    [N, 22, 2100] boxes and scores of a detector     scores: channels, and places of the grid, that reached 0.5
    [N, 1, H, W]  a mask from a Sigmoid              places that reached 0.5
    [N, 17, H, W] peaks of keypoints                 channels and places that rose from the background
    [N, 4]        numbers                            the least and the greatest

Whether a number of a regression is rare cannot be told without a reference, so of these only the span is said. What is counted is what
the sentence says, so that it is true whatever the output means. Nothing is said of outputs whose size differs from sample to sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array

HALF = 0.5
FEW = 8  # channels of numbers whose span is said
RUNS = 16  # to find the background by
QUIET, NEAR, HIGH = (
    0.9,
    0.1,
    0.5,
)  # this share of all values lies so near to the background, in units of the greatest height; active is above
BETWEEN_0_AND_1 = ("Sigmoid", "HardSigmoid")
MOVES = (
    "Cast",
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True)
class Active:
    """How many of an output's channels and places were ever active.

    above: `half` where activity is 0.5 or more, `background` where it is half of the greatest height above the background.
    channels, places: (seen, known); places None where the output has none but its channels.
    answers: where it has no places, of two answers per channel, at least and below 0.5, (seen, known).
    """

    above: Literal["half", "background"]
    channels: tuple[int, int]
    places: tuple[int, int] | None
    answers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Span:
    """From where to where an output went on the user's inputs.

    tensor: the output.
    low: its least number; of an output that also has scores, of its other channels.
    high: its greatest.
    """

    tensor: str
    low: float
    high: float


def regions(
    analysis: Analysis, name: str, values: Sequence[Array], sizes: Sequence[int]
) -> tuple[Active | None, Span | None]:
    """What the original gave for an output on the user's inputs, run by run. sizes: samples in each run."""
    inner = values[0].shape[1:]
    if values[0].dtype.kind != "f" or any(v.shape[1:] != inner or v.ndim < 2 or not v.size for v in values):
        return None, None
    if not all(np.isfinite(v).all() for v in values):
        return None, None
    axis = channel_axis(inner)
    is_batch = all(v.shape[0] == n for v, n in zip(values, sizes, strict=True))
    maps = [np.moveaxis(v, axis, 1).reshape(len(v), v.shape[axis], -1) for v in values]  # [samples, channels, places]
    low, high = (np.stack([f(m, axis=(0, 2)) for m in maps]) for f in (np.min, np.max))
    least, most = low.min(axis=0), high.max(axis=0)
    scores = (least >= 0) & (most <= 1) if _is_score(analysis, name) else np.zeros(len(least), bool)
    active = None
    if scores.any():
        active = _above_half([m[:, scores] for m in maps], is_batch)
    elif len(inner) >= 3:
        active = _above_background(maps, is_batch)
    left = ~scores
    wanted = left.any() and len(least) <= FEW and (active is None or active.above == "half")
    wanted |= bool(scores.any() and left.any() and left.sum() <= FEW)  # boxes beside scores
    return active, Span(name, float(least[left].min()), float(most[left].max())) if wanted else None


def channel_axis(inner: Sequence[int]) -> int:
    """Which axis of an output holds channels. inner: its shape behind the batch.

    Of maps the first or the last one, the one that is no side of a square, else the shorter; of others the shortest.
    """
    if len(inner) < 3:
        return 1 + int(np.argmin(inner))
    first, last = inner[0], inner[-1]
    if len(set(inner[1:])) == 1 and first != last:
        return 1
    if len(set(inner[:-1])) == 1 and first != last:
        return len(inner)
    return 1 if first <= last else len(inner)


def _is_score(analysis: Analysis, name: str) -> bool:
    """Does some of the tensor come straight from an operator that gives numbers between 0 and 1?"""
    makers = {o: node for node in analysis.view.graph.walk() for o in node.outputs}
    left, seen = [name], set[str]()
    while left:
        node = makers.get(left.pop())
        if node is None or node.key in seen:
            continue
        seen.add(node.key)
        if node.op in BETWEEN_0_AND_1:
            return True
        if node.op in MOVES:
            left += node.inputs if node.op == "Concat" else node.inputs[:1]
    return False


def _above_half(maps: Sequence[Array], is_batch: bool) -> Active:
    """maps: [samples, channels, places] of each run."""
    most = np.max([m.max(axis=0) for m in maps], axis=0)
    least = np.min([m.min(axis=0) for m in maps], axis=0)
    reached, below = (most >= HALF).any(axis=1), (least < HALF).any(axis=1)
    channels = int(reached.sum()), len(reached)
    if most.shape[1] == 1:
        return Active("half", channels, None, (int(reached.sum() + below.sum()), 2 * len(reached)))
    places = (most >= HALF).any(axis=0)
    return Active("half", channels, (int(places.sum()), places.size) if is_batch else None)


def _above_background(maps: Sequence[Array], is_batch: bool) -> Active | None:
    """None where values have no background: most of them near the median of their channel, in units of the greatest distance from it."""
    few = np.concatenate(maps[:: -(-len(maps) // RUNS)])
    background = np.median(few, axis=(0, 2))[:, None]
    height = max(float(np.abs(m - background).max()) for m in maps)
    quiet = sum(int((np.abs(m - background) <= NEAR * height).sum()) for m in maps)
    if height <= 0 or quiet < QUIET * sum(prod(m.shape) for m in maps):
        return None
    active = np.any([(np.abs(m - background) > HIGH * height).any(axis=0) for m in maps], axis=0)
    channels, places = active.any(axis=1), active.any(axis=0)
    return Active(
        "background", (int(channels.sum()), channels.size), (int(places.sum()), places.size) if is_batch else None
    )
