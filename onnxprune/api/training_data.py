"""What fine-tuning is given: data, labels and samples, and whether the two models fit together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data, read_arrays, sources_in, sources_of
from onnxprune.choose.finetune_options import FinetuneOptions
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds, batch_of
from onnxprune.model.interface import resized
from onnxprune.model.loaded import LoadedModel
from onnxprune.runtime import Session
from onnxprune.training.samples import Material, drawn, pool


def data_of(
    student: LoadedModel, data: str | Path | list[Feeds], settings: FinetuneOptions
) -> tuple[list[Feeds], frozenset[str]]:
    """The user's feeds, and the names of the labels among them where they are asked for."""
    inputs = runtime.graph_inputs(student.proto)
    named = {v.name for v in inputs}
    wants = settings.labels is not None or settings.metric is not None
    feeds = list(data) if isinstance(data, list) else load_data(data, inputs, labels=wants)
    labels: frozenset[str] = frozenset()
    if settings.labels is not None:
        name = str(settings.labels)
        if name in named:
            raise BadInputError(f"--labels '{name}' is an input of the model; name the array that holds the labels.")
        if name in feeds[0]:
            labels = frozenset({name})
        else:
            own = _labels_of(Path(settings.labels), feeds, named)
            feeds, labels = [feeds[0] | own], frozenset(own)
        for label in labels:
            if any(label in f and f[label].dtype.kind == "f" and not np.isfinite(f[label]).all() for f in feeds):
                raise BadInputError(f"Labels '{label}' contain NaN or infinity; remove or repair those samples.")
    return feeds, labels


def _labels_of(path: Path, feeds: list[Feeds], inputs: set[str]) -> Feeds:
    """The arrays of a file of labels (`.npz`, or one array as `.npy`) that have as many samples as the only feed."""
    if not path.exists():
        known = ", ".join(feeds[0])
        raise BadInputError(f"--labels {path} is neither a file nor an array of the data (it has: {known}).")
    if len(feeds) != 1:
        raise BadInputError("--labels FILE goes with a single data file; with a folder, put the labels into its files.")
    arrays = read_arrays(path, "--labels", "labels")
    rows = batch_of({n: a for n, a in feeds[0].items() if n in inputs})
    fitting = {n: a for n, a in arrays.items() if n not in inputs and a.ndim and a.shape[0] == rows}
    if not fitting:
        shapes = ", ".join(f"'{n}' {list(a.shape)}" for n, a in arrays.items())
        raise BadInputError(f"--labels {path} has no array for {rows} samples (it has: {shapes}).")
    return fitting


def check_same_interface(student: onnx.ModelProto, teacher: onnx.ModelProto) -> None:
    for what, mine, theirs in (
        ("inputs", runtime.graph_inputs(student), runtime.graph_inputs(teacher)),
        ("outputs", student.graph.output, teacher.graph.output),
    ):
        names = [[v.name for v in values] for values in (mine, theirs)]
        if sorted(names[0]) != sorted(names[1]):
            raise BadInputError(
                f"The teacher's {what} are {', '.join(names[1])}, the pruned model's {', '.join(names[0])}; give its original."
            )
    changed = next(iter(resized(teacher, student)), None)
    if changed is not None:
        raise BadInputError(
            f"Axis {changed.axis} of {changed.direction} '{changed.tensor}' is {changed.after} in the pruned model and {changed.before} in "
            "the teacher (--free), so the two do not run on the same data; prune without --free to fine-tune with a teacher, or train with "
            "--labels and data of the pruned model's sizes."
        )


def material_of(
    student: LoadedModel, feeds: list[Feeds], data: object, settings: FinetuneOptions, session: Session
) -> Material:
    """The samples of the data, and which of them judge."""
    inputs = runtime.graph_inputs(student.proto)
    sources = sources_of(data, inputs) if isinstance(data, str | Path) else sources_in(feeds, inputs)
    found = pool(feeds, inputs, session, settings.samples, sources)
    if len(set(found.sources)) < 2:
        what = "samples" if sources.kind == "sample" else f"sources of samples ({sources.kind}s)"
        raise BadInputError(
            f"Fine-tuning needs at least two {what}, to train on one and judge by another, and the data holds one; give more --data, "
            "stacked along the batch axis in one file, or a folder with a file for each."
        )
    return drawn(found, settings.seed)


def fingerprint(student: LoadedModel, teacher: LoadedModel | None, data: object, settings: FinetuneOptions) -> str:
    """What a checkpoint must agree on: files and settings, but not where it ends."""
    own = {k: str(v) for k, v in asdict(settings).items() if k not in ("checkpoint", "threads")}
    what = [student.sha256, teacher.sha256 if teacher else "", str(data) if isinstance(data, str | Path) else "", own]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
