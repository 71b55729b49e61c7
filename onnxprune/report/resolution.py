"""What a report says of the pictures inside the model (`--resolution`)."""

from __future__ import annotations

from onnxprune.choose.layers import Choice
from onnxprune.choose.subject import Subject
from onnxprune.cut.resolution import pictures
from onnxprune.report.values import ResolutionRow, Resolutions


def resolution_of(original: Subject, choice: Choice) -> Resolutions | None:
    """At which resolution the model works, and what was looked at; None where nothing was, and it works at its own."""
    taken = choice.subject.resolution
    first = taken if taken is not None else choice.sizes[0].resolution if choice.sizes else None
    if first is None:
        return None
    before = next(p.size for p in pictures(original.bare.model.proto) if p.name == first.input)
    rows = tuple(ResolutionRow(s.resolution.size, s.macs, s.damage, s.verdict) for s in choice.sizes)
    return Resolutions(first.input, before, before if taken is None else taken.size, choice.own_size, rows)
