"""`Cost`: what a target is a share of. MACs, parameters and bytes are in `choose/costs.py`; a contributor may write another.

A cost is any number that a removal changes: it need not be whole, nor fall with every channel, nor be a sum over groups, and it may
be as small as 1e-3 or as large as 1e12. Where a kernel works in blocks of 16 channels, for example, what counts are blocks:

    class Blocks:
        name, unit = "blocks", "blocks of 16 channels"

        def __init__(self, analysis: Analysis) -> None:
            self.analysis = analysis

        def total(self, removed: Bools | None = None) -> float:
            return sum(self.per_node(removed).values())

        def per_node(self, removed: Bools | None = None) -> Mapping[str, float]:
            gone = np.zeros(self.analysis.solution.count, bool) if removed is None else removed
            return {g.id: -(-int((~gone[g.classes]).sum()) // 16) for g in self.analysis.groups if g.removable}

        def per_class(self) -> Floats:
            return np.full(self.analysis.solution.count, 1 / 16)

    allocate(analysis, scores, Budget("macs", 0.5), round_to=1, cost=Blocks(analysis), orders=orders, damages=damages)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.ops.linear import Floats


class Cost(Protocol):
    """A cost of the model after a removal, without rewriting anything.

    `removed` is a bool per class (`Analysis.solution.count`), True where the class goes; None: nothing goes. Equal removals must
    cost the same, or results cannot be repeated.
    """

    @property
    def name(self) -> str:
        """One word, as in a target (`macs`)."""

    @property
    def unit(self) -> str:
        """What the numbers are (`MACs`, `bytes`, `ms`), for messages."""

    def total(self, removed: Bools | None = None) -> float:
        """Of the whole model: finite, 0 or more. The allocator relies on this alone."""

    def per_node(self, removed: Bools | None = None) -> Mapping[str, float]:
        """Shares by node key (or group id, where the cost knows no nodes), which together are the total where it is a sum. For reports."""

    def per_class(self) -> Floats:
        """First-order saving of removing each class, `[count]`. For reports."""


@runtime_checkable
class Stepped(Protocol):
    """A cost that falls in steps and knows where: of a group, it gives the numbers of steps that are worth removing."""

    def widths(self, group: Group, floor: float) -> tuple[int, ...]:
        """Ascending, from 0. floor: share of its units that the group keeps."""
