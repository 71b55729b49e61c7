"""Digits (the small networks in this folder): top-1 accuracy on handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.tasks.base import CALIBRATION, Feed, ScoreError, Task, open_session, random_stream

FOLDER = Path(__file__).resolve().parent.parent


def evaluate(model: Path, reference: Path) -> float:
    """The share of the 450 test images whose largest logit is at the label."""
    with np.load(FOLDER / "digits_test.npz") as test:
        logits = open_session(model).run(None, {"x": test["x"]})[0]
        return float((logits.argmax(axis=1) == test["labels"]).mean())


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `x` `[1, 1, 16, 16]`, drawn from 128 training images."""
    with np.load(FOLDER / "digits_calib.npz") as images:
        x = images["x"]
    if n > len(x):
        raise ScoreError(f"There are {len(x)} calibration images for 'digits'; {n} were asked.")
    rows = random_stream("digits", CALIBRATION, seed).choice(len(x), n, replace=False)
    return [{"x": x[row : row + 1]} for row in rows]


TASK = Task("top-1 accuracy", calibrate, evaluate)
