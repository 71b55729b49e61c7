"""File types from bytes (magika): the predicted type against the file's extension.

The files are those that a machine has anyway: Python's standard library and, where they exist,
`/usr/share`, `/usr/include` and `/usr/lib`. Which of them are taken follows from a digest of their
paths, so the choice is the same every time on one machine; on another machine the score differs a
little.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.tasks.base import CALIBRATION, Feed, ScoreError, Task, open_session, random_stream

# For each extension that names a type plainly: the classes of standard_v3_3 that are right. Most
# `.pl` files below `/usr` are tables of numbers, so they are left out.
CLASSES: dict[str, tuple[int, ...]] = {
    ".c": (17,),
    ".cmake": (22,),
    ".cpp": (26,),
    ".css": (31,),
    ".csv": (32,),
    ".gif": (58,),
    ".gz": (64,),
    ".h": (17, 26),
    ".html": (71,),
    ".jar": (80,),
    ".jpg": (86,),
    ".js": (83,),
    ".json": (87,),
    ".m4": (97,),
    ".md": (100,),
    ".npy": (110,),
    ".php": (131,),
    ".pm": (130,),
    ".png": (133,),
    ".py": (143,),
    ".rst": (153,),
    ".sh": (161,),
    ".so": (46,),
    ".sql": (165,),
    ".svg": (172,),
    ".tcl": (176,),
    ".toml": (181,),
    ".ttf": (184,),
    ".txt": (186, 149),
    ".wav": (195,),
    ".xml": (206,),
    ".yaml": (209,),
    ".yml": (209,),
    ".zip": (212,),
}
ROOTS = ("/usr/share", "/usr/include", "/usr/lib")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
PER_TYPE = 20
FEWEST_FILES = 50
SMALLEST, LARGEST = 64, 1 << 20

HALF = 1024
BLOCK = 4096
PADDING = 256


def features(content: bytes) -> npt.NDArray[np.int32]:
    """The model's input `[1, 2048]`: the first 1024 bytes and the last 1024, blanks stripped.

    Each half is looked for in a block of 4096 bytes at its end of the file; the first half is
    padded behind and the last half before, with 256, which is no byte.
    """
    row = np.full(2 * HALF, PADDING, np.int32)
    first = np.frombuffer(content[:BLOCK].lstrip()[:HALF], np.uint8)
    last = np.frombuffer(content[-BLOCK:].rstrip()[-HALF:], np.uint8)
    row[: len(first)] = first
    row[2 * HALF - len(last) :] = last
    return row[None]


def walk(root: Path) -> Iterator[Path]:
    """The regular files below a folder whose extension and size will do; links are left alone."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            path = Path(folder, name)
            if path.suffix not in CLASSES or path.is_symlink() or not os.access(path, os.R_OK):
                continue
            if SMALLEST <= path.stat().st_size <= LARGEST:
                yield path


@cache
def found_files() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files for evaluation, at most twenty of a type, and all the others, for calibration.

    Ordered by digest, so that no folder dominates; of files with equal contents one is taken.
    """
    roots = {Path(sysconfig.get_path("stdlib")), *map(Path, ROOTS)}
    files = {path for root in roots for path in walk(root)}
    evaluation: dict[str, list[Path]] = {suffix: [] for suffix in CLASSES}
    calibration: list[Path] = []
    seen: set[bytes] = set()
    for path in sorted(files, key=lambda p: hashlib.sha256(str(p).encode()).digest()):
        if len(evaluation[path.suffix]) >= PER_TYPE:
            calibration.append(path)
        elif (row := features(path.read_bytes()).tobytes()) not in seen:
            seen.add(row)
            evaluation[path.suffix].append(path)
    chosen = tuple(path for paths in evaluation.values() for path in paths)
    if len(chosen) < FEWEST_FILES:
        raise ScoreError(
            f"Found {len(chosen)} files with known extensions below {sorted(map(str, roots))}; "
            f"scoring file types needs at least {FEWEST_FILES}."
        )
    return chosen, tuple(calibration)


def evaluate(model: Path, reference: Path) -> float:
    """The share of files whose most probable class is one that the extension stands for."""
    files, _ = found_files()
    session = open_session(model)
    right = 0
    for path in files:
        probabilities = session.run(None, {"bytes": features(path.read_bytes())})[0]
        right += int(probabilities[0].argmax()) in CLASSES[path.suffix]
    return right / len(files)


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `bytes` `[1, 2048]` int32 of other files, every type as likely as any other."""
    evaluation, others = found_files()
    rng = random_stream("filetype", CALIBRATION, seed)
    by_type: dict[str, list[Path]] = {}
    for path in others:
        by_type.setdefault(path.suffix, []).append(path)
    taken = {features(path.read_bytes()).tobytes() for path in evaluation}
    feeds: list[Feed] = []
    while len(feeds) < n:
        if not by_type:
            raise ScoreError(f"Only {len(feeds)} files are left to calibrate on; {n} were asked.")
        suffix = str(rng.choice(sorted(by_type)))
        path = by_type[suffix].pop(int(rng.integers(len(by_type[suffix]))))
        if not by_type[suffix]:
            del by_type[suffix]
        row = features(path.read_bytes())
        if row.tobytes() not in taken:
            taken.add(row.tobytes())
            feeds.append({"bytes": row})
    return feeds


TASK = Task("accuracy", calibrate, evaluate)
