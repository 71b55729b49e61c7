"""Text files, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from onnxprune.core.errors import BadInputError


def check_writable(path: Path, option: str, inputs: tuple[Path, ...] = ()) -> None:
    """Fail early, before any work, when `path` could not be written or is one of the inputs."""
    if path.is_dir():
        raise BadInputError(f"{option} {path} is a folder; give a file name.")
    if not path.parent.is_dir():
        raise BadInputError(f"{option} {path}: the folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise BadInputError(f"{option} {path} cannot be written; choose another place.")
    for other in inputs:
        if path.resolve() == other.resolve():
            raise BadInputError(f"{option} {path} is the input file itself; choose another name.")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a temporary file in the same folder, then a rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
