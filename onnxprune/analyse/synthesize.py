"""Calibration inputs for a user who has none.

Images and the like are smooth on several scales: floating inputs are sums of noise at octaves, each enlarged to the input's size along its
space axes, with random weights per sample; scaled to mean 0 and a random contrast about 1 (`analyse/ranges.py` then finds the range that
a model wants). Long rows of floats are recordings, a few numbers without a batch are scales, in [0, 1]. What picks rows of a table (token
ids) takes any of its rows, positions count up, a mask is ones, for one sample in four with a tail of zeros, and a length is as often a part
of its axis, else all of it (`analyse/roles.py`). Everything else keeps what random observation feeds drew. These inputs are a stand-in, and
the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

import numpy as np
import onnx

from onnxprune.analyse.roles import OTHER, Role
from onnxprune.groups.observation import Array, Feeds, batch_of

COUNT = 512
ELEMENTS = 1 << 26
WAVE = 1024  # positions from which on a row of floats is a recording
SYLLABLE = 2000
KNOBS = 8  # so many floats without a batch are scales, temperatures and the like
TAILS = 0.25  # share of samples that are shorter than the others


def synthesize(
    template: Feeds,
    inputs: list[onnx.ValueInfoProto],
    seed: int = 0,
    count: int = COUNT,
    known: Mapping[str, Role] = MappingProxyType({}),
) -> list[Feeds]:
    """Feeds of the shapes of `template`, which ran; one sample each where its batch is 1, else as many as it holds. known: by input."""
    rng = np.random.default_rng(seed)
    size = batch_of(template)
    largest = max((v.size for v in template.values()), default=1)
    number = max(4, min(-(-count // size), ELEMENTS // max(largest, 1)))
    return [{v.name: _one(template[v.name], rng, known.get(v.name, OTHER)) for v in inputs} for _ in range(number)]


def _one(like: Array, rng: np.random.Generator, role: Role) -> Array:
    if role.kind == "index":
        return rng.integers(0, role.rows, like.shape).astype(like.dtype)
    if role.kind == "position" and like.ndim:
        return np.broadcast_to(np.arange(like.shape[-1]) % role.rows, like.shape).astype(like.dtype)
    if role.kind == "mask":
        return _mask(like.shape, rng).astype(like.dtype)
    if role.kind == "length":
        return _lengths(like.shape, role.rows, rng).astype(like.dtype)
    if role.kind == "choice":
        return like if np.isin(like, role.values).all() else np.full_like(like, role.values[-1])
    if like.dtype.kind in "iu" and like.size > 1:
        low, high = int(like.min()), int(like.max())
        return rng.integers(low, high + 1, like.shape).astype(like.dtype)
    if like.dtype.kind != "f":
        return like
    if like.ndim == 1 and like.size <= KNOBS:
        return rng.uniform(0, 1, like.shape).astype(like.dtype)
    if like.ndim == 2 and like.shape[1] >= WAVE:
        return np.stack([_wave(like.shape[1], rng) for _ in range(like.shape[0])]).astype(like.dtype)
    if like.ndim < 3:
        return rng.standard_normal(like.shape).astype(like.dtype)
    return np.stack([_smooth(like.shape[1:], rng) for _ in range(like.shape[0])]).astype(like.dtype)


def _wave(length: int, rng: np.random.Generator) -> Array:
    """Noise of a spectrum of 1/f that swells and fades some times, within [-1, 1]."""
    noise = np.fft.irfft(
        np.fft.rfft(rng.standard_normal(length)) / np.sqrt(np.arange(length // 2 + 1) + length / 200), length
    )
    times = np.linspace(0, 1, max(4, length // SYLLABLE))
    loud = np.interp(np.linspace(0, 1, length), times, rng.random(len(times)) ** 2)
    sound = noise * loud
    return np.asarray(rng.uniform(0.2, 1) * sound / max(float(np.abs(sound).max()), 1e-9))


def _lengths(shape: tuple[int, ...], most: int, rng: np.random.Generator) -> Array:
    """Mostly all of an axis, else a part of it that is not empty."""
    return np.asarray(np.where(rng.random(shape) < TAILS, rng.integers(1, most + 1, shape), most))


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ones along the last axis, one row in four with a tail of zeros."""
    length = shape[-1]
    ends = np.where(rng.random(shape[:-1]) < TAILS, rng.integers(1, length + 1, shape[:-1]), length) if length else 0
    return np.asarray(np.arange(length) < np.expand_dims(ends, -1))


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    from scipy.ndimage import zoom  # a tenth of a second to import, for made-up inputs only

    space = sorted(range(len(shape)), key=lambda a: -shape[a])[: max(1, len(shape) - 1)]
    total = np.zeros(shape)
    longest = max(shape[a] for a in space)
    octave = 2
    while octave <= max(2, longest):
        small = tuple(min(shape[a], octave) if a in space else shape[a] for a in range(len(shape)))
        noise = rng.standard_normal(small)
        factors = [n / s for n, s in zip(shape, small, strict=True)]
        layer = zoom(noise, factors, order=1) if prod(small) != prod(shape) else noise
        total += rng.random() ** 2 * layer[tuple(slice(0, n) for n in shape)]
        octave *= 2
    total -= total.mean()
    return np.asarray(total / max(float(total.std()), 1e-6) * rng.uniform(0.5, 1.5) + 0.3 * rng.standard_normal())
