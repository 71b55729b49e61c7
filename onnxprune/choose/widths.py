"""The widths that a group may have: how many of its steps may be removed, by rounding and by what must be left."""

from __future__ import annotations

import numpy as np

from onnxprune.groups.grouping import Group

FLOOR = 0.1
"""Share of its units that a group keeps, unless the target cannot be met otherwise."""

GRAIN = 64
"""About so many widths of a group are looked at; of a group with more units, those whose units kept are multiples of a power of two."""

STOPS = 40
"""Widths of a group that are timed, at most, where times decide."""


def rounded(group: Group, remove: int, round_to: int) -> int:
    """`remove` changed so that what is kept is the nearest multiple of `round_to` (up, on a tie), within what can be removed."""
    remove = min(remove, group.removable)
    if round_to <= 1 or not group.rounded or group.kind != "channels":
        return remove
    kept = group.units - remove
    nearest = max(round_to, int(np.floor(kept / round_to + 0.5)) * round_to)
    remove = group.units - nearest
    while remove > group.removable:
        remove -= round_to
    return max(0, remove)


def legal(group: Group, round_to: int, floor: float) -> tuple[int, ...]:
    """Numbers of steps that may be removed, ascending and from 0, so that `floor` of the units are left."""
    most = min(group.removable, int((1 - floor) * group.units))
    grain = 1 << (max(1, group.units // GRAIN).bit_length() - 1)
    kept = range(group.units // grain * grain, group.units - most - 1, -grain)
    counts = [0, *(group.units - n for n in kept), most]
    return tuple(sorted({n for n in (rounded(group, k, round_to) for k in counts) if 0 < n <= most} | {0}))


def stops(group: Group, floor: float = FLOOR) -> tuple[int, ...]:
    """Numbers of steps that may be removed where times decide, ascending and from 0: as many as are worth timing.

    What is kept are multiples of 4 or 8 (or of a larger power of two, of many units), as kernels work in blocks of these; of few units,
    any number. floor: share of the units that is left.
    """
    grain = next((g for units, g in ((17, 1), (33, 2), (129, 4)) if group.units < units), 8)
    while group.units > STOPS * grain:
        grain *= 2
    most = min(group.removable, int((1 - floor) * group.units))
    kept = range(group.units // grain * grain, group.units - most - 1, -grain)
    return tuple(sorted({0, *(group.units - n for n in kept), most}))
