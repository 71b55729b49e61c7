"""Results in a folder, so that a run that was stopped goes on where it was.

A result is KEY.json, and KEY.onnx where it has a model; the first one says the second one's hash. They are found by the hash of what they
were made from, so a folder may serve any number of models and options. Nothing in them is ever executed: they are JSON and ONNX.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from onnxprune.errors import BadInputError
from onnxprune.jobs.job import Result

FORMAT = 1


class Checkpoint:
    """folder: made with the first result, where it is missing. Raises `BadInputError` where that cannot be."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            what = "cannot be written" if there.is_dir() else f"cannot be a folder, as {there} is a file"
            raise BadInputError(f"--checkpoint {folder} {what}; choose another folder.")

    @property
    def count(self) -> int:
        """Results that lie there, of whatever model and options."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def get(self, key: str) -> Result | None:
        """The result of that key; None where there is none, or where it is not whole."""
        try:
            stored = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            if stored["format"] != FORMAT or stored["key"] != key or not isinstance(stored["values"], dict):
                return None
            if stored["model"] is None:
                return Result(stored["values"])
            model = (self.folder / f"{key}.onnx").read_bytes()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return Result(stored["values"], model) if hashlib.sha256(model).hexdigest() == stored["model"] else None

    def put(self, key: str, result: Result) -> None:
        """Write a result, whole or not at all; the model first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = None
        if result.model is not None:
            digest = hashlib.sha256(result.model).hexdigest()
            self._write(self.folder / f"{key}.onnx", result.model)
        document = {"format": FORMAT, "key": key, "values": result.values, "model": digest}
        self._write(self.folder / f"{key}.json", json.dumps(document).encode())

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
