"""What a model's input wants, as far as the file says: a picture, a waveform, tokens or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Array

CHANNELS = (1, 3, 4)
TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg")
TEXTS = (".txt", ".jsonl")
TABLES = (".csv", ".tsv")
ARRAYS = (".npy", ".npz")
Kind = Literal["images", "sounds", "texts", "table"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {"images": IMAGES, "sounds": SOUNDS, "texts": TEXTS, "table": TABLES}


@dataclass(frozen=True)
class Wanted:
    """name: of the input. dims: sizes of its axes, None where they are dynamic. kind: its element type, of numpy."""

    name: str
    dims: tuple[int | None, ...]
    dtype: np.dtype[np.generic]

    @property
    def layout(self) -> str | None:
        """`NCHW` or `NHWC`, where it takes a picture; None where it does not."""
        if len(self.dims) != 4 or self.dtype.kind not in "fui":
            return None
        if self.dims[1] in CHANNELS and self.dims[3] not in CHANNELS:
            return "NCHW"
        if self.dims[3] in CHANNELS and self.dims[1] not in CHANNELS:
            return "NHWC"
        return "NCHW" if self.dims[1] in CHANNELS else None

    @property
    def channels(self) -> int:
        """Of a picture."""
        found = self.dims[1 if self.layout == "NCHW" else 3]
        assert found is not None
        return found

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width of a picture."""
        return (self.dims[2], self.dims[3]) if self.layout == "NCHW" else (self.dims[1], self.dims[2])

    def __str__(self) -> str:
        shown = ", ".join("?" if d is None else str(d) for d in self.dims)
        return f"{quoted(self.name)} [{shown}] of {self.dtype}"


def wanted_of(values: list[onnx.ValueInfoProto]) -> list[Wanted]:
    """The inputs that must be fed. Raises `BadInputError` where one is no tensor of numbers."""
    found = []
    for value in values:
        kind = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise BadInputError(f"The input {quoted(value.name)} takes no numbers; make its data with numpy.savez.")
        dims = tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)
        found.append(Wanted(value.name, dims, np.dtype(helper.tensor_dtype_to_np_dtype(kind))))
    return found


def files_below(path: Path) -> list[Path]:
    """The file, or all files below a folder but hidden ones, in order."""
    if not path.exists():
        raise BadInputError(f"{path} does not exist; give a folder or a file{_near(path)}.")
    if not path.is_dir():
        return [path]
    return sorted(
        p for p in path.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(path).parts)
    )


def _near(path: Path) -> str:
    from difflib import get_close_matches

    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    found = get_close_matches(path.name, names, 1)
    return f" ('{path.parent / found[0]}' is there)" if found else ""


def kind_of(files: list[Path], source: Path) -> Kind:
    """What most of the files are. Raises `BadInputError` where they are nothing that is read."""
    counts = {kind: sum(p.suffix.lower() in suffixes for p in files) for kind, suffixes in SUFFIXES.items()}
    kind = max(counts, key=lambda k: counts[k])
    if not counts[kind]:
        known = "pictures (.jpg, .png, …), recordings (.wav, .flac), texts (.txt, .jsonl), tables (.csv) and arrays (.npy, .npz)"
        raise BadInputError(f"{source} holds nothing that is read here: {known}.")
    return kind


def cast(array: Array, wanted: Wanted) -> Array:
    """As the input's element type. Raises `BadInputError` where whole numbers do not fit."""
    if wanted.dtype.kind in "iu" and array.size:
        limits = np.iinfo(wanted.dtype.name)
        if array.min() < limits.min or array.max() > limits.max:
            raise BadInputError(
                f"{wanted} cannot hold values from {array.min():g} to {array.max():g}; give --preset 0..255, or --scale and --mean."
            )
        if array.dtype.kind == "f":
            array = np.rint(array)
    return array.astype(wanted.dtype)
