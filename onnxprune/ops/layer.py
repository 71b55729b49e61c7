"""A layer of a flat model that is linear in constant weights: what can be scored by its inputs and re-fitted."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.ops.linear import Linear


@dataclass(frozen=True)
class LinearLayer:
    """node: position in the flat model; x, w, y: keys of its input, weight and output; b: of its bias, "" for none.

    adder: the node that adds the bias, and at which input, where the layer itself cannot (MatMul, then Add).
    """

    node: int
    key: str
    linear: Linear
    x: str
    w: str
    b: str
    y: str
    adder: tuple[int, int] | None
