"""What a rule may change of a node: of the pruned model (`Edit`), of the masked original that it is compared with (`MaskEdit`)."""

from __future__ import annotations

from typing import Any, Protocol

from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.model.graph import Node


class Edit:
    """What an `adjust` rule sees and may change of one node after a removal. Implemented by `cut/rewrite.py`.

    `old`, `new`: shapes before and after; `kept(i, axis)`: a bool per old position, shape `[old(i)[axis]]`. Change the node with
    `set_attr`, `drop_attr`, `set_input`, `patch_input` and what follows them; weights have been sliced already.
    """

    node: Node
    attrs: dict[str, Any]
    opset: int

    def has(self, i: int) -> bool:
        raise NotImplementedError

    def old(self, i: int) -> Shape:
        """Shape of input `i` before."""
        raise NotImplementedError

    def new(self, i: int) -> Shape:
        """Shape of input `i` after."""
        raise NotImplementedError

    def old_out(self, k: int = 0) -> Shape:
        raise NotImplementedError

    def new_out(self, k: int = 0) -> Shape:
        raise NotImplementedError

    def kept(self, i: int, axis: int) -> Array:
        """Bool per position of `axis` of input `i`: does anything of it stay?"""
        raise NotImplementedError

    def kept_out(self, k: int, axis: int) -> Array:
        raise NotImplementedError

    def rank_of(self, i: int, axis: int, position: int) -> int:
        """How many positions before `position` stay along `axis` of input `i` (equal in all rows)."""
        raise NotImplementedError

    def value(self, i: int) -> Array | None:
        """Value of a parameter input in the original, None when it changes from feed to feed."""
        raise NotImplementedError

    def observed(self, i: int) -> Array | None:
        """Value of a parameter input in the original for the first feed."""
        raise NotImplementedError

    def set_attr(self, name: str, value: Any) -> None:
        raise NotImplementedError

    def drop_attr(self, name: str) -> None:
        raise NotImplementedError

    def set_input(self, i: int, value: Array) -> None:
        """Replace a parameter input by a constant."""
        raise NotImplementedError

    def patch_input(self, i: int, changed: Array, value: Array) -> None:
        """Replace the entries of a computed parameter where `changed`, by `value`; the others stay computed."""
        raise NotImplementedError

    def patch_sizes(self, i: int, changed: Array, before: Array, after: Array) -> None:
        """Entries of a parameter are sizes, which were `before` and are `after` where `changed`. Those that follow the inputs keep that
        ratio, whatever the inputs.
        """
        raise NotImplementedError

    def gather_output(self, axis: int, index: Array) -> None:
        """Take positions `index` of an axis of the first output."""
        raise NotImplementedError

    def draw_whole(self, axis: int) -> None:
        """Of a node that draws random numbers for every position of its first input: let it draw as many as before, and take what
        stays along an axis."""
        raise NotImplementedError

    def scale_output(self, factor: float) -> None:
        """Multiply the first output by a constant."""
        raise NotImplementedError

    def scale_constant(self, i: int, factor: float) -> bool:
        """Multiply a constant input; False when it is not one."""
        raise NotImplementedError

    def restore_counts(self, before: Array, after: Array) -> None:
        """The first output counts positions, `after` where there were `before`: let it count as in the original, whatever the inputs."""
        raise NotImplementedError

    def consumers(self) -> list[tuple[Node, int]]:
        """Who reads the first output, and as which input."""
        raise NotImplementedError

    def constant(self, key: str) -> Array | None:
        """The value of a constant tensor."""
        raise NotImplementedError


class MaskEdit(Protocol):
    """What a `reference` rule sees and may change of one node of the masked original.

    Forcing a unit to zero wherever it lives includes what an operator computes inside: a recurrence hands its hidden state from
    step to step, a quantized kernel subtracts zero points. There the rule changes the node's constants.
    """

    node: Node
    attrs: dict[str, Any]

    def has(self, i: int) -> bool:
        raise NotImplementedError

    def removed(self, i: int) -> Array:
        """Bool of input `i`'s full shape: True where the position has been removed."""
        raise NotImplementedError

    def constant(self, i: int) -> Array | None:
        """The value of a constant input in the original; None for one that is computed (its positions are masked already)."""
        raise NotImplementedError

    def set_constant(self, i: int, value: Array) -> None:
        """Give this node, and no other user of the constant, another value of the same shape and type."""
        raise NotImplementedError

    def shape(self, i: int) -> Shape:
        """Shape of input `i` in the original."""
        raise NotImplementedError

    def sum_inputs(self, inputs: tuple[int, ...]) -> Any:
        """A tensor that is the sum of those inputs that are there."""
        raise NotImplementedError

    def normalize_kept(
        self,
        i: int,
        axes: tuple[int, ...],
        scale: int | None,
        bias: int | None,
        where: tuple[int, ...],
        epsilon: float,
        total: Any = None,
    ) -> None:
        """Replace the node by (x - mean) / sqrt(variance + epsilon) * scale + bias with the statistics of kept positions only.

        Scale and bias lie along the axes `where` of input `i` (or of `total`, the tensor to normalise).
        """
        raise NotImplementedError

    def normalize_groups(self, groups: int, epsilon: float) -> None:
        """The same for group normalization of channels (axis 1) with everything after them."""
        raise NotImplementedError
