"""Values as text."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any


def to_json(data: Any) -> str:
    """Indented JSON that every parser reads: what is no finite number is null."""
    return json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value
