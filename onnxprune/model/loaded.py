"""A model as it was read, before anything is understood about it."""

from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True)
class LoadedModel:
    """What `load` hands to the other stages; nobody may change `proto`.

    proto: the model as read, with three exceptions that are needed for anything to work on it: calls of local
        functions are inlined, nodes are put into topological order if they were not, and nothing else.
        External data is *not* loaded: those tensors still say where their bytes lie, relative to `folder`.
    path: the file, or None if the model came as a ModelProto.
    folder: where external data lies (the folder of `path`).
    sha256: of the file's bytes (external data not included), or of the serialized proto.
    has_external_data: some tensor keeps its bytes in another file.
    size_bytes: the file's size, plus that of all external tensors.
    data_files: where external tensors lie; no output may take their place.
    """

    proto: onnx.ModelProto
    path: Path | None
    folder: Path | None
    sha256: str
    has_external_data: bool
    size_bytes: int
    data_files: frozenset[Path] = frozenset()
