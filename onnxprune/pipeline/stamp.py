"""Has anything changed since the last run? Hashes of what goes in and of what came out, in a small file beside the model.

small.onnx        the model
small.onnx.run    {"inputs": {"model": "…", "data": "…", "config": "…", …}, "outputs": {"small.onnx": "…", …}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.calibrate.metric import sources_of
from onnxprune.jobs import cluster
from onnxprune.model.loaded import LoadedModel

SUFFIX = ".run"


@dataclass(frozen=True)
class Stamp:
    """inputs: a SHA-256 (or a version) by what it is of. outputs: a SHA-256 by file name, relative to the model's folder."""

    inputs: dict[str, str]
    outputs: dict[str, str]

    def to_json(self) -> str:
        return json.dumps({"inputs": self.inputs, "outputs": self.outputs}, indent=2, sort_keys=True) + "\n"


def place_of(model: Path) -> Path:
    """Where the stamp of an output model lies."""
    return model.with_name(model.name + SUFFIX)


def read_stamp(model: Path) -> Stamp | None:
    """The stamp of an output model; None where there is none that can be read."""
    try:
        found = json.loads(place_of(model).read_text(encoding="utf-8"))
        return Stamp(
            {str(k): str(v) for k, v in found["inputs"].items()}, {str(k): str(v) for k, v in found["outputs"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_current(stamp: Stamp | None, inputs: Mapping[str, str], wanted: Iterable[Path], folder: Path) -> bool:
    """Are the inputs the same, and are all wanted files there as they were written?"""
    if stamp is None or stamp.inputs != dict(inputs):
        return False
    if not {relative(p, folder) for p in wanted} <= set(stamp.outputs):
        return False
    try:
        return all(of_file(folder / name) == digest for name, digest in stamp.outputs.items())
    except OSError:
        return False


def relative(path: Path, folder: Path) -> str:
    """As a stamp keeps it: so that a folder may be moved as a whole."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_model(model: LoadedModel) -> str:
    """SHA-256 of the file and of all files that hold its external data."""
    return (
        _together([model.sha256, *(of_file(p) for p in sorted(model.data_files))]) if model.data_files else model.sha256
    )


def of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names and bytes; of folders, of all files below."""
    parts: list[str] = []
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        parts += [part for f in files for part in (f.relative_to(path).as_posix() if path.is_dir() else "", of_file(f))]
    return _together(parts)


def of_metric(name: str) -> str:
    """SHA-256 of the files that a metric of the user's own, `module:function`, is written in; empty for one of onnxprune's.

    Raises `BadInputError` where it cannot be imported.
    """
    return of_files(sources_of(name)) if ":" in name else ""


def of_value(value: Any) -> str:
    """SHA-256 of what JSON makes of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of onnxprune and of the libraries that results may depend on; `?` for another build of one, such as onnxruntime-gpu."""
    found = cluster.versions()
    return {name: found.get(name, "?") for name in cluster.SAME}


def _together(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
