"""Inputs from the user: `.npz` files and shapes on the command line, checked against what the model declares."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnxprune.core.errors import BadInputError
from onnxprune.core.observation import Array, Feeds


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`("x:1,3,224,224",)` -> `{"x": (1, 3, 224, 224)}`."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(",") if d.strip())
        except ValueError:
            shape = (-1,)
        if not name or not shape or any(not 1 <= d < 1 << 31 for d in shape):
            raise BadInputError(f"--input-shape '{text}' is not of the form name:1,3,224,224 with sizes above zero.")
        shapes[name] = shape
    return shapes


def load_data(path: str | Path, inputs: list[onnx.ValueInfoProto]) -> list[Feeds]:
    """Feeds from a `.npz` file (arrays named like the inputs, stacked along the batch axis) or a folder of them, one feed each.

    Arrays with other names (labels) are left out. Raises `BadInputError` where names, types or shapes do not fit, and
    where a value is NaN.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise BadInputError(f"--data {path} holds no .npz file; write one per input with numpy.savez.")
        return [_read(file, inputs) for file in files]
    if not path.exists():
        raise BadInputError(f"--data {path} does not exist; give a .npz file or a folder of them.")
    return [_read(path, inputs)]


def _read(path: Path, inputs: list[onnx.ValueInfoProto]) -> Feeds:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise BadInputError(
                f"--data {path} is a single array; save it by name: numpy.savez(path, input_name=array)."
            )
        with archive:
            arrays = {name: archive[name] for name in archive.files if name in {v.name for v in inputs}}
            known = list(archive.files)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, KeyError) as error:
        raise BadInputError(f"--data {path} cannot be read as .npz: {str(error).splitlines()[0][:150]}.") from None
    feeds: Feeds = {}
    for value in inputs:
        if value.name not in arrays:
            raise BadInputError(
                f"--data {path} has no array '{value.name}' (it has: {', '.join(known[:8])}); name arrays like the model's inputs."
            )
        feeds[value.name] = _fit(arrays[value.name], value, path)
    return feeds


def _fit(array: Array, value: onnx.ValueInfoProto, path: Path) -> Array:
    want = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if array.dtype != want:
        if not np.can_cast(array.dtype, want, "same_kind"):
            raise BadInputError(
                f"--data {path}: '{value.name}' is {array.dtype}, the model wants {want}; convert it first."
            )
        array = array.astype(want)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInputError(f"--data {path}: '{value.name}' contains NaN or infinity; remove or repair those samples.")
    dims = value.type.tensor_type.shape.dim
    if value.type.tensor_type.HasField("shape"):
        declared = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
        batchless = list(array.shape)
        fits = len(declared) == array.ndim and all(
            d is None or d == n or (axis == 0 and d > 0 and n % d == 0)
            for axis, (d, n) in enumerate(zip(declared, batchless, strict=True))
        )
        if not fits or 0 in array.shape:
            shown = [d if d is not None else "?" for d in declared]
            raise BadInputError(
                f"--data {path}: '{value.name}' has shape {list(array.shape)}, the model wants {shown}."
            )
    return array


def take(feeds: Feeds, inputs: list[onnx.ValueInfoProto], count: int) -> Feeds:
    """The first `count` samples where the batch is dynamic, else as many as the model declares."""
    taken: Feeds = {}
    for value in inputs:
        array = feeds[value.name]
        dims = value.type.tensor_type.shape.dim
        if not dims:
            taken[value.name] = array
            continue
        fixed = dims[0].dim_value if dims[0].HasField("dim_value") and dims[0].dim_value > 0 else None
        taken[value.name] = array[: fixed or count]
    return taken
