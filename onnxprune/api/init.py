"""`onnxprune init`: a config to start from, with what was found out about the model."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data
from onnxprune.api.inspect import inspect
from onnxprune.clock import Progress, silent
from onnxprune.errors import BadInputError
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.load import load
from onnxprune.model.loaded import LoadedModel
from onnxprune.pipeline.starter import Facts, starter


def init(
    model: str | PathLike[str],
    output: str | PathLike[str] = "prune.yaml",
    *,
    force: bool = False,
    progress: Progress = silent,
) -> str:
    """Write a commented config for a model, and give its text. A .npz file beside the model whose arrays fit is named as its data.

    output: the config; paths in it are relative to its folder. force: overwrite one that is there. Raises `BadInputError`.
    """
    source, target = Path(model), Path(output)
    if target.exists() and not force:
        raise BadInputError(f"{target} exists; choose another name with -o, or overwrite it with --force.")
    check_outputs({"-o": target}, (source,))
    loaded = load(source)
    folder = target.absolute().parent
    data = _data_beside(source, loaded)
    facts = Facts(
        _from(source, folder), loaded, inspect(source, progress=progress), None if data is None else _from(data, folder)
    )
    text = starter(facts)
    with staged({target: text}):
        pass
    return text


def _from(path: Path, folder: Path) -> str:
    """A path as the config in a folder says it."""
    return Path(os.path.relpath(path.absolute(), folder)).as_posix()


def _data_beside(model: Path, loaded: LoadedModel) -> Path | None:
    """The first .npz file in the model's folder whose name starts like the model's and whose arrays are inputs of it."""
    inputs = runtime.graph_inputs(loaded.proto)
    found = [p for p in sorted(model.parent.glob("*.npz")) if p.stem.startswith(model.stem)]
    for path in sorted(found, key=lambda p: ("calib" not in p.stem, p.stem)):
        try:
            load_data(path, inputs)
        except BadInputError:
            continue
        return path
    return None
