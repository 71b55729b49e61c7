"""Times of small graphs, kept on disk: what was measured once on a machine, by an engine of a version, is not measured again.

One JSON file for each place where models are timed (`Runner.key`), in the user's cache folder:

    {"format": 1, "key": {"engine": "onnxruntime", "version": "1.32.0", "threads": "1", …}, "ms": {FORM: 0.042, …}}

A file that cannot be read as such is taken for empty and written anew; one of another key is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from onnxprune.errors import BadInputError
from onnxprune.model.files import staged

FORMAT = 1
"""Of the files, and of how times are taken: what another format says is not used."""

ENVIRONMENT = "ONNXPRUNE_CACHE"


def cache_folder() -> Path:
    """`ONNXPRUNE_CACHE`, else `onnxprune` in the user's cache folder of this system (on Linux by the XDG rules)."""
    own = os.environ.get(ENVIRONMENT)
    if own:
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxprune" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onnxprune"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune"


@dataclass(frozen=True)
class Kept:
    """A file of times. ms: milliseconds by form of the small graph."""

    path: Path
    key: dict[str, str]
    ms: dict[str, float]


class KeptTimes:
    """The times of one place. get, put: by form; `save` writes what is new. Where the folder cannot be written to, nothing is kept."""

    def __init__(self, key: Mapping[str, str], folder: Path | None = None) -> None:
        self.key = {str(k): str(v) for k, v in key.items()}
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.path = (folder or cache_folder()) / "times" / f"{digest[:16]}.json"
        self._new: dict[str, float] = {}
        self._ms = self._stored()

    def get(self, form: str) -> float | None:
        return self._ms.get(form)

    def put(self, form: str, ms: float) -> None:
        self._ms[form] = self._new[form] = ms

    def save(self) -> None:
        """Adds what is new to what is there by now."""
        if not self._new:
            return
        merged = dict(sorted((self._stored() | self._new).items()))
        document = {"format": FORMAT, "key": self.key, "ms": merged}
        with contextlib.suppress(OSError), staged({self.path: json.dumps(document, indent=1) + "\n"}):
            self._new = {}

    def _stored(self) -> dict[str, float]:
        found = _read(self.path)
        return dict(found.ms) if found is not None and found.key == self.key else {}


def _read(path: Path) -> Kept | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    key, ms = document.get("key"), document.get("ms")
    if not isinstance(key, dict) or not isinstance(ms, dict):
        return None
    return Kept(path, {str(k): str(v) for k, v in key.items()}, {k: float(v) for k, v in ms.items() if _is_time(v)})


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def all_kept(folder: Path | None = None) -> Iterator[Kept]:
    """Every file of times that can be read."""
    for path in sorted(((folder or cache_folder()) / "times").glob("*.json")):
        found = _read(path)
        if found is not None:
            yield found


def clear(folder: Path | None = None) -> int:
    """Deletes all files of times, those that cannot be read as well; how many."""
    paths = sorted(((folder or cache_folder()) / "times").glob("*.json"))
    try:
        for path in paths:
            path.unlink()
    except OSError as problem:
        raise BadInputError(f"{path} cannot be deleted ({problem.strerror}); check who may write there.") from None
    return len(paths)
