"""What every task shares: the `Task` value, sessions, random streams and the agreement measure."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Feed = dict[str, Array]

EVALUATION = 0
CALIBRATION = 1

# What ONNX Runtime raises for a model it cannot load or run; these classes share no base.
ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class ScoreError(Exception):
    """A model cannot be scored; the message says why in a sentence."""


@dataclass(frozen=True)
class Task:
    """One model's inputs and measure.

    `calibration(n, seed, model)` gives `n` unlabelled feeds that share no recording, image, line or
    file with the evaluation; `model` is the unpruned model, which only recurrent tasks run.
    `evaluate(model, reference)` gives the score in [0, 1]; measures of agreement compare with the
    unpruned `reference`, the others leave it unread.
    """

    metric: str
    calibration: Callable[[int, int, Path], list[Feed]]
    evaluate: Callable[[Path, Path], float]


def open_session(path: Path) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread, so that a score can be repeated."""
    if not path.is_file():
        raise ScoreError(f"No model at '{path}'; fetch the real models: python models/fetch.py.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ScoreError(f"ONNX Runtime cannot load '{path}': {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require(module: str) -> ModuleType:
    """Import an optional dependency, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ScoreError(
            f"Scoring needs '{module.partition('.')[0]}'; install it: pip install 'onnxprune[models]'."
        ) from None


def random_stream(task: str, purpose: int, seed: int = 0) -> np.random.Generator:
    """A generator of its own for each task, purpose (evaluation or calibration) and seed."""
    return np.random.default_rng([purpose, seed, *task.encode()])


def agreement(both: int, ours: int, theirs: int) -> float:
    """F1 of two sets: twice what they share, over their sizes; two empty sets agree."""
    return 2 * both / (ours + theirs) if ours + theirs else 1.0
