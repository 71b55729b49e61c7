"""Held-out samples that are near copies of fitted ones: crops that overlap, the same recording a moment later, a text with a word changed.

Images and waves: two crops that overlap are the same up to a shift, so their whitened cross-correlation (phase correlation, Kuglin and
Hines 1975) has one sharp peak, at the shift, where unrelated ones have noise of 1/sqrt(n) everywhere. Other floats: the angle between
two samples, after the mean sample is taken away. Token ids: the share of the runs of three that both have.
"""

from __future__ import annotations

import numpy as np

from onnxprune.analyse.samples import Samples
from onnxprune.groups.observation import Array

MOST = 256  # samples to compare, fitted and held out each
SIDE = 64  # positions of an image along an axis that are compared; of a wave, its square
PEAK = 10.0  # of a phase correlation, in its standard deviations: of unrelated samples the largest has 7, of overlapping crops 15 to 60
ANGLE = 0.98
SAME = 0.5  # runs of tokens
RUN = 3


def near_copies(samples: Samples) -> tuple[int, int]:
    """(near copies of fitted samples, held-out samples that were compared), of the user's samples."""
    parts = [_rows(samples, held) for held in (False, True)]
    if not all(parts):
        return 0, 0
    fitted, held = (
        [some[k] for k in np.linspace(0, len(some) - 1, min(MOST, len(some))).astype(int)] for some in parts
    )
    names = [n for n in fitted[0] if _telling(n, fitted + held)]
    if not names:
        return 0, len(held)
    found = [_alike([s[n] for s in held], [s[n] for s in fitted]) for n in names]
    return int(np.all(found, axis=0).any(axis=1).sum()), len(held)


def _rows(samples: Samples, held: bool) -> list[dict[str, Array]]:
    """Single samples, as far as first axes hold them."""
    rows = []
    for k in samples.own:
        feed, size = samples.feeds[k], samples.sizes[k]
        if samples.held[k] == held:
            each = {n: a for n, a in feed.items() if a.ndim and a.shape[0] == size}
            rows += [{n: a[i] for n, a in each.items()} for i in range(size)]
    return rows


def _telling(name: str, rows: list[dict[str, Array]]) -> bool:
    """Is an input of numbers that differ from sample to sample: no mask, no rate?"""
    if any(name not in r for r in rows) or rows[0][name].dtype.kind not in "iuf" or rows[0][name].size < RUN:
        return False
    first = rows[0][name]
    return any(r[name].shape != first.shape or bool((r[name] != first).any()) for r in rows) and any(
        len(np.unique(r[name])) > 2 for r in rows[:8]
    )


def _alike(held: list[Array], fitted: list[Array]) -> Array:
    """[held, fitted]: is one a near copy of the other?"""
    if held[0].dtype.kind in "iu":
        return _overlap(held, fitted)
    shapes = {a.shape for a in held + fitted}
    if len(shapes) > 1:
        return np.zeros((len(held), len(fitted)), bool)
    shape = [n for n in shapes.pop() if n > 1]
    space = sorted(range(len(shape)), key=lambda a: -shape[a])[: max(1, len(shape) - 1)]
    if len(shape) > 0 and min(shape[a] for a in space[:2]) >= SIDE // 2:
        both = np.stack([_small(a.reshape(shape), space[:2]) for a in held + fitted])
        return _peaks(both, len(held))
    both = np.stack([a.ravel() for a in held + fitted]).astype(np.float64)
    both -= both.mean(axis=0)
    both /= np.linalg.norm(both, axis=1, keepdims=True) + 1e-12
    return np.asarray(both[: len(held)] @ both[len(held) :].T > ANGLE)


def _small(array: Array, space: list[int]) -> Array:
    """Means over channels, and over neighbours until there are about `SIDE` positions along each of two axes (their product of one)."""
    others = tuple(a for a in range(array.ndim) if a not in space)
    result = array.astype(np.float64).mean(axis=others)
    most = SIDE if result.ndim > 1 else SIDE * SIDE
    for axis in range(result.ndim):
        step = max(1, result.shape[axis] // most)
        whole = np.moveaxis(result, axis, -1)
        whole = whole[..., : whole.shape[-1] // step * step]
        result = np.moveaxis(whole.reshape(*whole.shape[:-1], -1, step).mean(axis=-1), -1, axis)
    return np.asarray(result - result.mean())


def _peaks(rows: Array, held: int) -> Array:
    """Phase correlation of the first `held` rows with the others, above `PEAK`."""
    axes = tuple(range(1, rows.ndim))
    for axis in axes:
        window = np.hanning(rows.shape[axis] + 2)[1:-1]
        rows = rows * window.reshape([-1 if a == axis else 1 for a in range(rows.ndim)])
    spectra = np.fft.rfftn(rows, axes=axes)
    spectra /= np.abs(spectra) + 1e-9 * np.abs(spectra).max() + 1e-30
    result = np.zeros((held, len(rows) - held), bool)
    for k in range(held):
        found = np.fft.irfftn(spectra[held:] * np.conj(spectra[k]), s=rows.shape[1:], axes=axes)
        deviation = found.std(axis=axes)
        result[k] = found.max(axis=axes) > PEAK * deviation
    return result


def _overlap(held: list[Array], fitted: list[Array]) -> Array:
    sets = [_runs(a) for a in held + fitted]
    known: dict[tuple[int, ...], int] = {}
    for runs in sets:
        for run in runs:
            known[run] = known.get(run, 0) + 1
    common = {run for run, count in known.items() if count > len(sets) // 2}  # frames of every text, such as padding
    sets = [runs - common for runs in sets]
    return np.array(
        [
            [bool(a and b) and len(a & b) >= SAME * min(len(a), len(b)) for b in sets[len(held) :]]
            for a in sets[: len(held)]
        ]
    )


def _runs(tokens: Array) -> set[tuple[int, ...]]:
    """Tokens that follow one another; none of what is shorter than a run."""
    if tokens.size < RUN:
        return set()
    runs = np.lib.stride_tricks.sliding_window_view(tokens.ravel(), RUN).tolist()
    return {tuple(run) for run in runs if len(set(run)) > 1}
