"""What a report says of layers and nodes."""

from __future__ import annotations

from onnxprune.choose.layers import Choice
from onnxprune.choose.subject import Subject
from onnxprune.cut.bypass import Links
from onnxprune.report.values import BypassDeclined, BypassRow, Depth


def depth_of(original: Subject, choice: Choice, mode: str) -> Depth | None:
    """Layers that went, and candidates that did not, with reasons; None where none was looked for. mode: of `Options.depth`."""
    bypasses = choice.subject.bypasses
    if mode == "off" and not bypasses:
        return None
    links = Links(original.bare)
    damages = {x.candidate.bypass: x.damage for x in choice.looks if x.is_taken}
    rows = []
    before: frozenset[str] = frozenset()
    for k, bypass in enumerate(bypasses):
        gone = links.gone(bypasses[: k + 1]) - before
        before |= gone
        macs = int(original.costs.of_nodes("macs", gone))
        rows.append(BypassRow(bypass.tensor, bypass.by, len(gone), macs, damages.get(bypass)))
    declined = tuple(
        BypassDeclined(
            tensor=x.candidate.bypass.tensor,
            by=x.candidate.bypass.by,
            macs=x.candidate.macs,
            change=x.candidate.change,
            damage=x.damage,
            reason=x.verdict,
        )
        for x in choice.looks
        if not x.is_taken
    )
    return Depth(mode, choice.baseline, tuple(rows), declined)
