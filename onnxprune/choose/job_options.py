"""Where the work is done: a list of options (`choose/field.py`) that all commands share that have jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.choose.checks import file, optional, whole_number
from onnxprune.choose.field import documented, option
from onnxprune.errors import BadInputError


def _address(flag: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInputError(f"{flag} takes the address of a Dask scheduler, such as tcp://10.0.0.5:8786.")
    return value


@documented
@dataclass(frozen=True)
class JobOptions:
    """Where the work is done. Results are the same wherever that is."""

    jobs: int | None = option(
        None,
        optional(whole_number(1)),
        "Processes of this machine; each takes as much memory as prune does alone.",
        cli={"type": int},
        by_default="explore: one per core; else this process alone",
    )
    cluster: str | None = option(
        None,
        optional(_address),
        "Work on this Dask cluster instead, such as tcp://10.0.0.5:8786; needs onnxprune[cluster].",
        cli={"metavar": "ADDRESS"},
        by_default="none",
    )
    checkpoint: str | Path | None = option(
        None,
        optional(file),
        "Keep results in this folder, and go on from those that are there.",
        cli={"path": True, "metavar": "DIR"},
        by_default="none",
    )
