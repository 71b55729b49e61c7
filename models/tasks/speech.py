"""Voice activity (Silero): which frames hold speech, in synthetic speech with pauses, in noise.

A recording is a row of phrases and pauses. A phrase is a row of syllables: sometimes a hiss (a
fricative), then a vowel whose formants move to those of the next. A vowel is a train of glottal
pulses behind formant filters, written as what that is, a sum of harmonics of the fundamental
f0(t), with amplitudes

    a_k(t) = 1 / k * sum_i  g_i * b_i^2 / ((k f0(t) - F_i(t))^2 + b_i^2)

where F_i are the formants, b_i their bandwidths and g_i their levels. Noise is added, from white to
brown, 10 to 30 dB below the voice.

The model is fed as it is used: chunks of 512 samples at 16 kHz, each behind the last 64 samples of
the chunk before, with the state of shape `[2, batch, 128]` carried on.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.tasks.base import (
    CALIBRATION,
    EVALUATION,
    Feed,
    Floats,
    Task,
    open_session,
    random_stream,
)

RATE = 16_000
CHUNK = 512
CONTEXT = 64
STATE = 128
SECONDS = 12
RECORDINGS = 24
STREAMS = 16  # recordings that a calibration feed advances at once
CONTROL = 200  # control points a second, of f0, formants and loudness

# The first three formants of spoken vowels, in hertz (Peterson and Barney 1952, men).
VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    np.float64,
)
BANDWIDTHS = np.array([60.0, 90.0, 150.0])
LEVELS = np.array([1.0, 0.6, 0.3])

Signal = npt.NDArray[np.float64]


def speak_phrase(rng: np.random.Generator, seconds: float, pitch: float) -> Signal:
    """A phrase of about four syllables a second, at a level of 1. Samples at 16 kHz."""
    points = int(seconds * CONTROL)
    ends = np.cumsum(rng.uniform(0.14, 0.34, 40))
    ends = np.append(ends[ends < seconds - 0.1], seconds)
    starts = np.concatenate([[0.0], ends[:-1]])
    scale = 1.0 + 0.17 * (pitch > 160)  # shorter vocal tracts come with higher voices
    vowels = VOWELS[rng.integers(len(VOWELS), size=len(starts))] * scale

    t = np.arange(points) / CONTROL
    centres = (starts + ends) / 2
    formants = np.stack([np.interp(t, centres, vowels[:, i]) for i in range(3)])
    wander = np.interp(t, np.linspace(0, seconds, 6), rng.uniform(0.92, 1.12, 6))
    f0 = pitch * wander * np.linspace(1.08, 0.88, points)
    f0 *= 1 + 0.01 * rng.standard_normal(points)

    loudness = np.zeros(points)
    hiss = np.zeros(points)
    for start, end in zip(starts, ends, strict=True):
        consonant = rng.uniform(0.05, 0.1) if rng.random() < 0.5 else 0.02
        phase = np.clip((t - start - consonant) / (end - start - consonant), 0, 1)
        loudness += np.sin(np.pi * phase) ** 0.5 * rng.uniform(0.6, 1.0)
        if consonant > 0.02:
            hiss += ((t >= start) & (t < start + consonant)) * rng.uniform(0.1, 0.3)
    return voiced(f0, formants, loudness) + fricative(rng, hiss)


def voiced(f0: Signal, formants: Signal, loudness: Signal) -> Signal:
    """The sum of harmonics; all arguments at control points, `formants` `[3, points]`."""
    samples = len(f0) * RATE // CONTROL
    at = np.arange(samples) * CONTROL / RATE
    points = np.arange(len(f0))
    phase = 2 * np.pi * np.cumsum(np.interp(at, points, f0)) / RATE
    total = np.zeros(samples)
    for k in range(1, int(5000 / f0.mean())):
        distance = (k * f0 - formants) ** 2
        resonance = BANDWIDTHS[:, None] ** 2 / (distance + BANDWIDTHS[:, None] ** 2)
        amplitude = loudness * (LEVELS @ resonance) / k
        total += np.interp(at, points, amplitude) * np.sin(k * phase)
    return levelled(total)


def fricative(rng: np.random.Generator, hiss: Signal) -> Signal:
    """Noise without its low half, at the level `hiss` given at control points."""
    samples = len(hiss) * RATE // CONTROL
    noise = coloured(rng, samples, low=3000)
    return noise * np.interp(np.arange(samples) * CONTROL / RATE, np.arange(len(hiss)), hiss)


def coloured(rng: np.random.Generator, samples: int, low: float = 0.0, slope: float = 0.0) -> Signal:
    """Gaussian noise of level 1 above `low` hertz, whose amplitude falls as frequency^-slope."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum *= (frequency >= low) * np.maximum(frequency, 20.0) ** -slope
    noise: Signal = np.fft.irfft(spectrum, samples)
    return levelled(noise)


def levelled(sound: Signal) -> Signal:
    """The sound at a root mean square of 1."""
    result: Signal = sound / (np.sqrt(np.mean(sound**2)) + 1e-9)
    return result


def record(rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Twelve seconds `[samples]` of one voice in noise, and where it speaks, sample by sample."""
    samples = SECONDS * RATE
    sound, speech = np.zeros(samples), np.zeros(samples, bool)
    pitch = float(rng.uniform(90, 240))
    position = int(rng.uniform(0.2, 1.5) * RATE)
    while position < samples:
        phrase = speak_phrase(rng, float(rng.uniform(0.8, 3.0)), pitch)
        phrase = phrase[: samples - position]
        sound[position : position + len(phrase)] = phrase
        speech[position : position + len(phrase)] = True
        position += len(phrase) + int(rng.uniform(0.4, 2.0) * RATE)
    noise_level = 10 ** (-rng.uniform(10, 30) / 20)
    sound += noise_level * coloured(rng, samples, slope=float(rng.uniform(0, 1)))
    sound *= rng.uniform(0.03, 0.1)
    return sound.astype(np.float32), speech


def chunks(recordings: Floats) -> Floats:
    """Recordings `[R, samples]` as chunks with context `[T, R, 576]`."""
    steps = recordings.shape[1] // CHUNK
    padded = np.pad(recordings, ((0, 0), (CONTEXT, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK, axis=1)
    taken: Floats = windows[:, : steps * CHUNK : CHUNK].transpose(1, 0, 2)
    return np.ascontiguousarray(taken)


def step(session: Any, chunk: Floats, state: Floats) -> tuple[Feed, Floats, Floats]:
    """Run one chunk `[R, 576]`: the feed, the probabilities `[R]` and the next state."""
    feed: Feed = {"input": chunk, "state": state, "sr": np.array(RATE, np.int64)}
    probability, following = session.run(["output", "stateN"], feed)
    return feed, probability[:, 0], following


@cache
def evaluation_recordings() -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Chunks `[T, R, 576]` and whether most of each is speech `[T, R]`."""
    rng = random_stream("speech", EVALUATION)
    sounds, speech = zip(*(record(rng) for _ in range(RECORDINGS)), strict=True)
    taken = chunks(np.stack(sounds))
    masks = np.stack(speech)[:, : len(taken) * CHUNK]
    return taken, masks.reshape(RECORDINGS, -1, CHUNK).mean(axis=2).T > 0.5


def evaluate(model: Path, reference: Path) -> float:
    """The share of frames where a probability above 0.5 says rightly whether there is speech."""
    session = open_session(model)
    sounds, speech = evaluation_recordings()
    state = np.zeros((2, RECORDINGS, STATE), np.float32)
    predicted = []
    for chunk in sounds:
        _, probability, state = step(session, chunk, state)
        predicted.append(probability > 0.5)
    return float((np.stack(predicted) == speech).mean())


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds spread over sixteen other recordings, with the states the unpruned model reached.

    Each is one step of all sixteen: `input` `[16, 576]`, `state` `[2, 16, 128]`, `sr` a scalar.
    """
    rng = random_stream("speech", CALIBRATION, seed)
    sounds = chunks(np.stack([record(rng)[0] for _ in range(STREAMS)]))
    steps = set(np.linspace(0, len(sounds) - 1, n).astype(int).tolist())
    session = open_session(model)
    state = np.zeros((2, STREAMS, STATE), np.float32)
    feeds: list[Feed] = []
    for index, chunk in enumerate(sounds):
        feed, _, state = step(session, chunk, state)
        if index in steps:
            feeds.append(feed)
    return feeds


TASK = Task("frame accuracy", calibrate, evaluate)
