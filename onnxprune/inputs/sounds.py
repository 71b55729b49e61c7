"""Recordings as a model is fed them: one channel, the model's rate, pieces of the model's length, from -1 to 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array
from onnxprune.inputs.wanted import SOUNDS, Wanted, cast

SECONDS = 1.0  # of a piece, where the model's length is dynamic and nothing is said


@dataclass(frozen=True)
class Recordings:
    """values: as the input has its axes, `[n, …, time]`. groups: number of the file of each. rate: samples a second."""

    values: Array
    groups: Array
    rate: int
    skipped: tuple[tuple[Path, str], ...]
    note: str


def soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):
        raise BadInputError("Recordings are read by soundfile; install it: pip install 'onnxprune[data]'.") from None
    return soundfile


def read(
    files: Sequence[Path], wanted: Wanted, rate: int | None, seconds: float | None, told: Callable[[float], None]
) -> Recordings:
    """rate: of the model; by default that of the files, if it is one. seconds: of a piece, where the model's length is dynamic."""
    sf = soundfile()
    heard: list[tuple[Path, Array, int]] = []
    skipped: list[tuple[Path, str]] = []
    for k, path in enumerate(files):
        if path.suffix.lower() in SOUNDS:
            try:
                values, own = sf.read(str(path), dtype="float32", always_2d=True)
                if not len(values):
                    raise ValueError("it is empty")
                heard.append((path, values.mean(axis=1), int(own)))
            except (RuntimeError, ValueError, OSError) as problem:
                skipped.append((path, " ".join(str(problem).split())[:80]))
        told((k + 1) / len(files))
    if not heard:
        raise BadInputError(
            f"None of {len(skipped)} recordings can be read; the first: {skipped[0][0]}: {skipped[0][1]}."
        )
    rates = sorted({own for _, _, own in heard})
    if rate is None and len(rates) > 1:
        raise BadInputError(
            f"The recordings have rates of {', '.join(map(str, rates))} a second; say with --rate which one the model takes."
        )
    target = rate or rates[0]
    note = f"{target} samples a second, as {'--rate says' if rate else 'the recordings have; say with --rate if the model takes another'}"
    length = wanted.dims[-1] or round((seconds or SECONDS) * target)
    if seconds is not None and wanted.dims[-1] is not None and round(seconds * target) != length:
        raise BadInputError(
            f"{wanted} takes {length} values, which are {length / target:g} s at {target} a second; leave --seconds out."
        )
    pieces, groups = [], []
    for number, (_, values, own) in enumerate(heard):
        made = _resampled(values, own, target)
        count = max(1, len(made) // length)  # the rest of a recording is left out, unless it is all
        made = np.pad(made, (0, max(0, length - len(made))))[: count * length]
        pieces += list(made.reshape(count, length))
        groups += [number] * count
    shape = (len(pieces), *(1 for _ in wanted.dims[1:-1]), length)
    if any(d not in (None, 1) for d in wanted.dims[1:-1]):
        raise BadInputError(
            f"{wanted} takes no waveform of one channel; make its features with numpy and give them as .npz."
        )
    return Recordings(cast(np.stack(pieces).reshape(shape), wanted), np.array(groups), target, tuple(skipped), note)


def _resampled(values: Array, own: int, target: int) -> Array:
    if own == target:
        return values
    from scipy.signal import resample_poly

    common = gcd(own, target)
    return np.asarray(resample_poly(values, target // common, own // common), np.float32)
