"""What is kept of the times of small graphs: listed, exported, deleted."""

from __future__ import annotations

from typing import Any

from onnxprune.choose.kept_times import FORMAT, all_kept, cache_folder, clear


def costs() -> dict[str, Any]:
    """All times on disk: `folder`, and `places`, each with its file, its key (machine, engine, version, …) and milliseconds by the digest
    of the small graph that was timed (operators, shapes; no names and no weights).
    """
    places = [{"file": k.path.name, "key": k.key, "ms": k.ms} for k in all_kept()]
    return {"format": FORMAT, "folder": str(cache_folder()), "places": places}


def clear_costs() -> int:
    """Deletes them; how many files there were. Raises `BadInputError` where that is not allowed."""
    return clear()
