"""What layers should give where the model works on smaller pictures than the original.

Layer by layer, positions of the two are not the same ones, so most layers are fitted to the model's own at that size before anything was
cut. Tensors that have one size in both (behind a pooling over all positions) are fitted to those of the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.groups.observation import Array


class Targets:
    """coarse: the uncut model at its size. fine: the original, for the tensors in `names`."""

    def __init__(self, coarse: Stepwise, fine: Stepwise, names: frozenset[str]) -> None:
        self.coarse, self.fine, self.names = coarse, fine, names
        self.maker, self.nodes, self.count = coarse.maker, coarse.nodes, coarse.count
        self.is_constant = coarse.is_constant

    def _of(self, name: str) -> Stepwise:
        return self.fine if name in self.names else self.coarse

    def values(self, name: str) -> Iterator[Array | None]:
        return self._of(name).values(name)

    def keep(self, names: Iterable[str]) -> None:
        for name in names:
            self._of(name).keep([name])

    def can(self, name: str) -> bool:
        return self._of(name).can(name)

    def release(self, name: str) -> None:
        self._of(name).release(name)
