"""Files, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from onnxprune.errors import BadInputError, quoted

MOST = 10_000  # names of a folder that are looked at


def nearby(path: Path) -> Path | None:
    """What is there instead of a path that is not, each missing part replaced by the nearest name in its folder; None if none is near."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        step = found / part
        if not step.exists():
            try:
                names = [entry.name for entry in islice(os.scandir(found), MOST)]
            except OSError:
                return None
            near = get_close_matches(part.lower(), [n.lower() for n in names], 1, cutoff=0.75)
            if not near:
                return None
            step = found / next(n for n in names if n.lower() == near[0])
        found = step
    return found


def instead(path: Path, otherwise: str) -> str:
    """What to do about a path that is not there, the end of a message."""
    found = nearby(path)
    return otherwise if found is None else f"did you mean {quoted(found)}?"


def check_writable(path: Path, option: str, inputs: tuple[Path, ...] = ()) -> None:
    """Fail early, before any work, when `path` could not be written or is one of the inputs."""
    if path.is_dir():
        raise BadInputError(f"{option} {path} is a folder; give a file name.")
    folder = next(p for p in (path.parent, *path.parent.parents) if p.exists())  # what is missing below it is made
    if not folder.is_dir():
        raise BadInputError(f"{option} {path}: {folder} is a file and no folder; choose another place.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise BadInputError(f"{option} {path} cannot be written; choose another place.")
    for other in inputs:
        if path.resolve() == other.resolve():
            raise BadInputError(f"{option} {path} is named twice, or is an input; choose another name.")


def check_outputs(outputs: Mapping[str, str | os.PathLike[str] | None], inputs: Iterable[object] = ()) -> None:
    """`check_writable` for files to write, by option, against what is read and against each other. inputs: paths count, others do not."""
    taken = tuple(Path(p) for p in inputs if isinstance(p, str | os.PathLike))
    for option, path in outputs.items():
        if path is not None:
            check_writable(Path(path), option, taken)
            taken = (*taken, Path(path))


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """The folder of a file to write is made where it is missing, with those around it, and goes again where the block fails."""
    missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):  # something else lies there by now
                made.rmdir()
        raise


def _beside(path: Path) -> tuple[int, str]:
    """A new file in the folder of one to write: its handle and its name."""
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


@contextlib.contextmanager
def staged(texts: dict[Path, str]) -> Iterator[None]:
    """Texts are written beside their places first; they move there when the block ends well, or vanish."""
    temporary: dict[str, Path] = {}
    with contextlib.ExitStack() as folders:
        try:
            for path, text in texts.items():
                folders.enter_context(folder_of(path))
                handle, name = _beside(path)
                temporary[name] = path
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.chmod(name, 0o644)
            yield
            for name, path in temporary.items():
                os.replace(name, path)
        finally:
            for name in temporary:
                Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """One file; its folder is made where it is missing."""
    with folder_of(path):
        handle, name = _beside(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """A .npz file of arrays by name."""
    import numpy as np

    held = io.BytesIO()
    np.savez(held, **arrays)
    write_bytes(path, held.getvalue())
