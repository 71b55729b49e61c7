"""Two profiles beside each other, by nodes of the original: pruning keeps their names.

A kernel of the pruned model stands beside the one of the original that computed its main node. What is expected of it is the time
before, times the share of its MACs that is left (of its bytes, where it has none); what it takes more is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from onnxprune.report.profile import Compared, ModelProfile, ProfiledKernel

SESSION = "outside of kernels"
NOTHING = 1e-9


@dataclass
class Pair:
    """Kernels of the original and of the pruned model that compute the same. gone: the plan removed their nodes."""

    before: list[ProfiledKernel] = field(default_factory=list)
    after: list[ProfiledKernel] = field(default_factory=list)
    gone: bool = False

    @property
    def main(self) -> ProfiledKernel:
        return (self.before or self.after)[0]

    @property
    def expected_ms(self) -> float:
        before = sum(k.ms for k in self.before)
        for amount in (macs_of, bytes_of):
            whole = amount(self.before)
            if whole:
                return before * amount(self.after) / whole
        return before if self.after else 0.0


def macs_of(kernels: Sequence[ProfiledKernel]) -> float:
    return sum(k.macs for k in kernels)


def bytes_of(kernels: Sequence[ProfiledKernel]) -> float:
    return sum(k.bytes for k in kernels)


def pairs_of(before: ModelProfile, after: ModelProfile, removed: Set[str] = frozenset()) -> list[Pair]:
    """Every kernel of both models is in one pair. removed: keys of nodes that a plan says are gone."""
    homes: dict[str, Pair] = {}
    put_in: dict[str, Pair] = defaultdict(Pair)
    pairs: list[Pair] = []
    for k in before.kernels:
        pair = homes.get(k.node) if k.node else put_in[k.operator]
        if pair is None:
            pair = Pair(gone={k.node, *k.fused} <= removed)
            pairs.append(pair)
        pair.before.append(k)
        for key in (k.node, *k.fused) if k.node else ():
            homes.setdefault(key, pair)
    for k in after.kernels:
        found = next((homes[key] for key in (k.node, *k.fused) if key in homes), None) if k.node else put_in[k.operator]
        if found is None:
            found = Pair()
            pairs.append(found)
            homes[k.node] = found
        found.after.append(k)
    return [*pairs, *put_in.values()]


def compared(pairs: Sequence[Pair], before: ModelProfile, after: ModelProfile) -> tuple[Compared, ...]:
    """Row by row, the largest disappointments first; all rows add up to the two runs."""
    rows = [_row(pair) for pair in pairs]
    expected = before.outside_ms
    lost = after.outside_ms - expected
    reason = "no kernel: inputs, outputs, and the start of each kernel"
    rows.append(Compared("", SESSION, "", before.outside_ms, after.outside_ms, 0, 0, expected, lost, reason))
    return tuple(sorted(rows, key=lambda r: -r.lost_ms))


def _row(pair: Pair) -> Compared:
    main, expected = pair.main, pair.expected_ms
    before, after = (sum(k.ms for k in side) for side in (pair.before, pair.after))
    macs = macs_of(pair.before), macs_of(pair.after)
    name = main.name if main.node else f"{main.operator} (put in)"
    return Compared(
        main.node,
        name,
        main.operator,
        before,
        after,
        macs[0],
        macs[1],
        expected,
        after - expected,
        _reason(pair, after - expected),
    )


def _reason(pair: Pair, lost: float) -> str:
    """In a few words, the most certain one first."""
    if pair.gone:
        return "removed by the plan"
    if not pair.after:
        return "no kernel of its own any more"
    if not pair.before:
        return "not in the original"
    first, now = pair.before[0], pair.after[0]
    if not first.node:
        return "put in by ONNX Runtime"
    if first.is_blocked and not now.is_blocked:
        return "fell out of the blocked kernels"
    if first.provider != now.provider:
        return f"moved to {now.provider}"
    if parted(pair):
        return "fell out of a fused kernel"
    if macs_of(pair.before) == macs_of(pair.after) and bytes_of(pair.before) == bytes_of(pair.after):
        return "nothing was removed from it"
    if lost <= 0.1 * max(pair.expected_ms, NOTHING):
        return ""
    return {"memory": "held up by memory", "small": "too small to get faster"}.get(
        now.bound, "kernels do less well at this width"
    )


def parted(pair: Pair) -> list[ProfiledKernel]:
    """Kernels of their own, now, for what was fused before."""
    fused = {key for k in pair.before for key in k.fused}
    if len(pair.after) <= len(pair.before):
        return []
    mains = {k.node for k in pair.before}
    return [k for k in pair.after if k.node in fused and k.node not in mains]
