"""Units behind a dynamic axis: heads that a Reshape merges with the batch lie there once per sample, at b * H + h for every sample b.

They may leave a tensor whose size follows the inputs, as long as every node on their way keeps to their number per sample.
"""

from __future__ import annotations

from math import lcm

import numpy as np

from onnxprune import ops
from onnxprune.groups.maps import Facet, Maps, period
from onnxprune.groups.observation import Observation
from onnxprune.groups.units import Pin, UnitTable
from onnxprune.model.graph import Node
from onnxprune.ops.base import MapContext

Sizes = tuple[int, int]
"""Of an axis, with both feeds."""


class Repeats:
    """What one walk finds out about dynamic axes.

    known: by sizes of an axis, how many positions of one sample lie along axes of these sizes. A tensor that is expanded to such a size
    gets as many units there, whichever comes first in the graph: `missed` tells that another walk will know more.
    """

    def __init__(
        self, observation: Observation, units: UnitTable, state: dict[str, Maps], known: dict[Sizes, int]
    ) -> None:
        self._observation = observation
        self._units = units
        self._state = state
        self.known = dict(known)
        self._asked: set[Sizes] = set()
        self._before = dict(known)

    @property
    def missed(self) -> bool:
        """Was a number asked for that only became known afterwards?"""
        return any(self.known.get(s) != self._before.get(s) for s in self._asked)

    def per_sample(self, key: str, axis: int) -> int:
        """How many positions of a sample an axis of these sizes holds elsewhere; 0 where nothing is known of one."""
        sizes = self._observation.sizes(key, axis)
        self._asked.add(sizes)
        return self._before.get(sizes, 0)

    def hold(self, node: Node) -> None:
        """What lies along a dynamic axis once per sample stays, where the node may name the size of that axis."""
        for key in node.inputs:
            for facet in self._state.get(key, ()):
                dynamic = self._dynamic(key, facet)
                if dynamic:
                    pin = Pin(node.key, f"{node} has them in axis {dynamic[0]}, whose size changes")
                    self._without(pin, facet, dynamic)

    def checked(self, context: MapContext, key: str, facet: Facet) -> Facet:
        """A facet of an output, without what would have to leave a dynamic axis; of size 1 where nothing is left."""
        dynamic = self._dynamic(key, facet)
        if not dynamic:
            return facet
        whole = self._repeated(context, key, facet, dynamic)
        if whole is not None:
            return whole
        pin = context.because(f"makes them part of axis {dynamic[0]}, whose size changes with the inputs")
        return self._without(pin, facet, dynamic)

    def _dynamic(self, key: str, facet: Facet) -> tuple[int, ...]:
        return tuple(a for a, n in enumerate(facet.shape) if n > 1 and self._observation.is_dynamic(key, a))

    def _repeated(self, context: MapContext, key: str, facet: Facet, dynamic: tuple[int, ...]) -> Facet | None:
        """The facet, if it lies along a dynamic axis once per sample, and the node does not name the size of that axis.

        Units that the rule issued there are tied from sample to sample, as those of the inputs are.
        """
        node, axis = context.node, dynamic[0]
        found = ops.rule_for(node.op, node.domain)
        allowed = found.adjust is None if found.repeats is None else found.repeats(context, axis)
        if len(dynamic) > 1 or not allowed:
            return None
        size, other = sizes = self._observation.sizes(key, axis)
        length = period(facet, axis)
        if length == size:
            seen = ((k, f) for k in node.inputs for f in self._state.get(k, ()))
            there = [
                (f, a)
                for k, f in seen
                for a, n in enumerate(f.shape)
                if n > 1 and self._observation.sizes(k, a) == sizes
            ]
            length = min((period(f, a) for f, a in there), default=size)
        if length == size or other % length:
            return None
        longest = lcm(length, self.known.get(sizes, 1))
        if size % longest == 0 == other % longest:
            self.known[sizes] = longest
        one = facet.take(range(length), axis=axis)
        whole = np.concatenate([one] * (size // length), axis=axis)
        self._units.tie(whole, facet)
        return whole

    def _without(self, pin: Pin, facet: Facet, dynamic: tuple[int, ...]) -> Facet:
        """Units that became part of a dynamic axis stay there; what varies along other axes too may lose the same offsets."""
        rest = tuple(a for a, n in enumerate(facet.shape) if n > 1 and a not in dynamic)
        if not rest or (facet < 0).any():
            self._units.pin(facet.ravel(), pin)
            return np.full((1,) * facet.ndim, -1, np.int64)
        rows = self._units.issue(int(np.prod([facet.shape[a] for a in dynamic])))
        rows = rows.reshape([n if a in dynamic else 1 for a, n in enumerate(facet.shape)])
        self._units.row(facet, rows)
        self._units.pin(rows.ravel(), pin)
        return self._units.column(facet, dynamic)
