"""In which order the units of a group go."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.groups.units import Ids
from onnxprune.ops.linear import Floats


@dataclass(frozen=True)
class Order:
    """A group's steps, first to go first: classes of each step, and the error after it (relative variance, cumulative)."""

    classes: tuple[Ids, ...]
    error: Floats
    consumers: tuple[str, ...]
