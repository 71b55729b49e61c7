"""More inputs from the given ones. A teacher labels whatever it sees, so a student may be shown mixtures, shifted pictures and noise
("Knowledge distillation: a good teacher is patient and consistent", CVPR 2022): it learns the function, not 4,000 points of it.

    mixed = augmented(feeds, rows, rng, Augmentation())

Done to floating inputs only, and only where that is one input with a batch axis; anything else comes as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.groups.observation import Array, Feeds


@dataclass(frozen=True)
class Augmentation:
    """mix: share of samples mixed with another one. patch: share that get a patch of another one. shift: largest shift along each axis
    of space, as a share of it, for pictures (rank 4). noise: standard deviation, as a share of the input's own.
    """

    mix: float = 0.5
    patch: float = 0.25
    shift: float = 0.1
    noise: float = 0.05

    @property
    def is_on(self) -> bool:
        return max(self.mix, self.patch, self.shift, self.noise) > 0


NONE = Augmentation(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Mixture:
    """Augmented feeds; sample k is `share[k]` of itself and the rest of sample `other[k]`, for the labels' sake."""

    feeds: Feeds
    other: Array
    share: Array


def target(feeds: Feeds) -> str | None:
    """The one floating input with a batch axis."""
    names = [n for n, v in feeds.items() if v.dtype.kind == "f" and v.ndim >= 2 and v.size]
    return names[0] if len(names) == 1 else None


def space(array: Array) -> list[int]:
    """Axes of a picture's height and width: the two largest behind the batch, at least 8 long, next to each other."""
    axes = sorted(sorted(range(1, array.ndim), key=lambda a: -int(array.shape[a]))[:2])
    fits = array.ndim == 4 and axes[1] == axes[0] + 1 and min(array.shape[a] for a in axes) >= 8
    return axes if fits else []


def augmented(feeds: Feeds, rng: np.random.Generator, how: Augmentation) -> Mixture:
    """Every random number is drawn whatever is switched on, so that one setting does not change another's draws."""
    name = target(feeds)
    if name is None or not how.is_on:
        rows = max((v.shape[0] for v in feeds.values() if v.ndim), default=1)
        return Mixture(feeds, np.arange(rows), np.ones(rows, np.float32))
    x = feeds[name]
    rows = x.shape[0]
    if how.shift and space(x):
        x = _shifted(x, rng, how.shift)
    other, share = rng.permutation(rows), np.ones(rows, np.float32)
    kind, amount = rng.random(rows), rng.random(rows).astype(x.dtype)
    mixed = kind < how.mix
    share[mixed] = amount[mixed]
    factor = share.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    source = x
    x = factor * x + (1 - factor) * x[other]
    if how.patch and space(x):
        for k in np.flatnonzero((kind >= how.mix) & (kind < how.mix + how.patch)):
            share[k] = _patched(x[k], source[other[k]], space(source), rng)
    if how.noise:
        x = x + (how.noise * x.std(dtype=np.float32) * rng.standard_normal(x.shape, np.float32)).astype(x.dtype)
    return Mixture({**feeds, name: x}, other, share)


def _shifted(x: Array, rng: np.random.Generator, most: float) -> Array:
    """Each sample moved by its own whole number of positions; the edge is repeated."""
    axes = space(x)
    for axis in axes:
        size = x.shape[axis]
        reach = round(most * size)
        moves = rng.integers(-reach, reach + 1, x.shape[0])
        where = np.clip(np.arange(size) + np.reshape(moves, (-1, 1)), 0, size - 1)
        shape = [x.shape[0] if a == 0 else size if a == axis else 1 for a in range(x.ndim)]
        x = np.take_along_axis(x, where.reshape(shape), axis=axis)
    return x


def _patched(sample: Array, source: Array, axes: list[int], rng: np.random.Generator) -> float:
    """Paste a box of `source` into `sample` (CutMix, ICCV 2019); the share that is left of it."""
    where: list[slice] = [slice(None)] * sample.ndim
    area = 1.0
    for axis in axes:
        size = sample.shape[axis - 1]
        side = int(rng.integers(size // 4, 3 * size // 4 + 1))
        first = int(rng.integers(0, size - side + 1))
        where[axis - 1] = slice(first, first + side)
        area *= side / size
    sample[tuple(where)] = source[tuple(where)]
    return 1 - area
