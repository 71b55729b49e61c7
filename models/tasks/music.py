"""Music transcription (Basic Pitch): do the note maps agree with those of the unpruned model?

A window is two seconds at 22 050 Hz of a melody over chords, from one of several timbres: sums of
harmonics that decay, slightly out of tune, in a little noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.tasks.base import (
    CALIBRATION,
    EVALUATION,
    Feed,
    Floats,
    Task,
    agreement,
    open_session,
    random_stream,
)

RATE = 22_050
SAMPLES = 43_844
WINDOWS = 24
INPUT = "serving_default_input_2:0"
# The maps that notes are read from, `[N, 172, 88]`, and the levels above which a cell is active.
NOTE, NOTE_LEVEL = "StatefulPartitionedCall:1", 0.3
ONSET, ONSET_LEVEL = "StatefulPartitionedCall:2", 0.5
CHORDS = ((0, 4, 7), (0, 3, 7), (0, 5, 9), (0, 4, 7, 10), (0, 7))


def play_note(rng: np.random.Generator, key: float, seconds: float, brightness: float) -> Floats:
    """One note, MIDI number `key`, with a short attack, decaying harmonics and a short release."""
    t = np.arange(int(seconds * RATE)) / RATE
    frequency = 440 * 2 ** ((key - 69 + rng.normal(0, 0.05)) / 12)
    sound = np.zeros(len(t))
    for k in range(1, min(16, int(RATE / 2 / frequency))):
        decay = np.exp(-t * (0.8 + 0.3 * k))
        level = k**-brightness * rng.uniform(0.6, 1.4)
        sound += level * decay * np.sin(2 * np.pi * k * frequency * t + rng.uniform(0, 2 * np.pi))
    envelope = np.clip(t / 0.01, 0, 1) * np.clip((seconds - t) / 0.03, 0, 1)
    return (sound * envelope * rng.uniform(0.5, 1)).astype(np.float32)


def play_window(rng: np.random.Generator) -> Floats:
    """One input `[1, 43844, 1]`: chords of half a second to a second below a melody."""
    sound = np.zeros(SAMPLES, np.float32)

    def add(key: float, start: float, seconds: float) -> None:
        note = play_note(rng, key, seconds, brightness)[: SAMPLES - int(start * RATE)]
        sound[int(start * RATE) : int(start * RATE) + len(note)] += note

    brightness = float(rng.uniform(0.8, 2))
    root = int(rng.integers(40, 56))
    beat = float(rng.uniform(0.5, 1.0))
    for start in np.arange(rng.uniform(0, 0.3), 1.7, beat):
        low = root + int(rng.choice([0, 2, 5, 7, 9]))
        for interval in CHORDS[rng.integers(len(CHORDS))]:
            add(low + interval, start, beat)
    length = float(rng.choice([beat / 2, beat / 3, beat / 4]))
    for start in np.arange(rng.uniform(0, 0.3), 1.8, length):
        if rng.random() < 0.85:
            add(root + 12 + int(rng.integers(0, 24)), start, length)
    sound *= rng.uniform(0.2, 0.9) / (np.abs(sound).max() + 1e-9)
    sound += rng.normal(0, 10 ** rng.uniform(-4, -2.5), SAMPLES).astype(np.float32)
    return sound.reshape(1, SAMPLES, 1)


def active_cells(model: Path, windows: list[Floats]) -> npt.NDArray[np.bool_]:
    """Which cells of the note and onset maps are active, `[windows, 172, 176]`."""
    session = open_session(model)
    maps = []
    for window in windows:
        note, onset = session.run([NOTE, ONSET], {INPUT: window})
        maps.append(np.concatenate([note > NOTE_LEVEL, onset > ONSET_LEVEL], axis=2))
    return np.concatenate(maps)


def evaluate(model: Path, reference: Path) -> float:
    """F1 of the active cells of both models over all windows."""
    rng = random_stream("music", EVALUATION)
    windows = [play_window(rng) for _ in range(WINDOWS)]
    ours, theirs = active_cells(model, windows), active_cells(reference, windows)
    return agreement(int((ours & theirs).sum()), int(ours.sum()), int(theirs.sum()))


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `serving_default_input_2:0` `[1, 43844, 1]`."""
    rng = random_stream("music", CALIBRATION, seed)
    return [{INPUT: play_window(rng)} for _ in range(n)]


TASK = Task("note agreement (F1)", calibrate, evaluate)
