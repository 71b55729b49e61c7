"""A model in memory, and what is known of the file that it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True)
class Model:
    """An ONNX model and the folder that its external data is relative to.

    proto: the model. Nobody may change it: whoever wants another one makes a copy.
    folder: where tensors with external data look for their files; None if the model is in memory alone.
    """

    proto: onnx.ModelProto
    folder: Path | None = None

    def beside(self, proto: onnx.ModelProto) -> Model:
        """Another model whose external data, if it has any, lies where this one's does."""
        return Model(proto, self.folder)


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Model):
    """A model as `load` read and checked it.

    proto: as in the file, with two exceptions that are needed for anything to work on it: calls of local functions are
        inlined, and nodes are put into topological order if they were not. External data is *not* loaded: those tensors
        still say where their bytes lie, relative to `folder`.
    path: the file, or None if the model came as a ModelProto.
    sha256: of the file's bytes (external data not included), or of the serialized proto.
    has_external_data: some tensor keeps its bytes in another file.
    size_bytes: the file's size, plus that of all external tensors.
    data_files: where external tensors lie; no output may take their place.
    """

    path: Path | None
    sha256: str
    has_external_data: bool
    size_bytes: int
    data_files: frozenset[Path] = frozenset()
