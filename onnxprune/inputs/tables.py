"""Tables as a model is fed them: columns by the inputs' names, or all columns of numbers in one input."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Array
from onnxprune.inputs.wanted import TABLES, Wanted, cast


def read(files: Sequence[Path], wanted: Sequence[Wanted]) -> dict[str, Array]:
    """Raises `BadInputError` with the line of a value that is no number."""
    parts = [_read(p, wanted) for p in files if p.suffix.lower() in TABLES]
    return {w.name: cast(np.concatenate([p[w.name] for p in parts]), w) for w in wanted}


def _read(path: Path, wanted: Sequence[Wanted]) -> dict[str, Array]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(65536)
            file.seek(0)
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else _delimiter(start)))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise BadInputError(f"{path} cannot be read as a table: {problem}.") from None
    rows = [r for r in rows if any(cell.strip() for cell in r)]
    if not rows:
        raise BadInputError(f"{path} is empty.")
    has_header = not any(_is_number(cell) for cell in rows[0])
    heads = [c.strip() for c in rows[0]] if has_header else []
    body = rows[1:] if has_header else rows
    if not body:
        raise BadInputError(f"{path} has a line of names and nothing else.")
    own = {w.name: [heads.index(w.name)] for w in wanted if w.name in heads and _width(w) in (None, 1)}
    if len(own) == len(wanted):
        columns = own
    elif len(wanted) == 1:
        usable = [k for k in range(len(body[0])) if all(k < len(r) and _is_number(r[k]) for r in body)]
        width = _width(wanted[0])
        if width is not None and len(usable) != width:
            empty = next(
                (
                    (n, k)
                    for n, r in enumerate(body, 2 if has_header else 1)
                    for k in range(len(body[0]))
                    if k >= len(r) or not r[k].strip()
                ),
                None,
            )
            hint = f"; line {empty[0]} has no value in column {empty[1] + 1}" if empty else ""
            raise BadInputError(
                f"{wanted[0]} takes {width} numbers a row, and {path} has {len(usable)} columns of numbers only{hint}."
            )
        columns = {wanted[0].name: usable}
    else:
        missing = [w.name for w in wanted if w.name not in own]
        raise BadInputError(
            f"{path} has no column named {quoted(missing[0])}; columns are {', '.join(heads) or 'without names'}."
        )
    return {
        w.name: _numbers(path, body, columns[w.name], has_header).reshape(len(body), *_inner(w, len(columns[w.name])))
        for w in wanted
    }


def _delimiter(start: str) -> str:
    try:
        return csv.Sniffer().sniff(start, ",;\t|").delimiter
    except csv.Error:
        return ","


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _width(wanted: Wanted) -> int | None:
    """Numbers of a row; None where any go."""
    sizes = [d for d in wanted.dims[1:] if d is not None]
    return prod(sizes) if len(sizes) == len(wanted.dims[1:]) else None


def _inner(wanted: Wanted, width: int) -> tuple[int, ...]:
    inner = wanted.dims[1:]
    if not inner:
        return ()
    return tuple(d for d in inner if d is not None) if None not in inner else (*(1 for _ in inner[:-1]), width)


def _numbers(path: Path, body: Sequence[Sequence[str]], columns: Sequence[int], has_header: bool) -> Array:
    made = np.zeros((len(body), len(columns)), np.float64)
    for n, row in enumerate(body):
        for k, column in enumerate(columns):
            cell = row[column] if column < len(row) else ""
            if not _is_number(cell) or not np.isfinite(float(cell)):
                line = n + (2 if has_header else 1)
                raise BadInputError(
                    f"{path}, line {line}, column {column + 1}: {quoted(cell)} is no number; fill in or leave out such rows."
                )
            made[n, k] = float(cell)
    return made
