"""A layer of a flat model that is linear in constant weights: what can be scored by its inputs and re-fitted."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.ops.linear import Linear


@dataclass(frozen=True)
class LinearLayer:
    """node: position in the flat model; x, w, y: keys of its input, weight and output; b: of its bias, "" for none.

    adder: key of the node that adds the bias, and at which input, where the layer itself cannot (MatMul, then Add).
    loop: key of the loop in whose body it lies, "" for none; `node` is then the loop's position, and x and y have a value per step
        (`model/bodies.py`).
    """

    node: int
    key: str
    linear: Linear
    x: str
    w: str
    b: str
    y: str
    adder: tuple[str, int] | None
    loop: str = ""

    @property
    def reads(self) -> str:
        """The tensor of a watched model that has what the layer reads; a list of what it reads step by step."""
        return f"{self.y}//reads" if self.loop else self.x

    @property
    def gives(self) -> str:
        """The same of what it gives."""
        return f"{self.y}//gives" if self.loop else self.y
