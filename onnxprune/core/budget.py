"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxprune.core.errors import BadInputError

Metric = Literal["ratio", "macs", "params"]
AUTO = 8


@dataclass(frozen=True)
class Budget:
    """`Budget("ratio", 0.5)` removes half of every group; `Budget("macs", 0.5)` keeps at most half of the MACs."""

    metric: Metric
    amount: float

    def __post_init__(self) -> None:
        if self.metric not in ("ratio", "macs", "params"):
            raise BadInputError(f"Unknown target '{self.metric}'; choose ratio, macs or params.")
        low_open = self.metric != "ratio"
        if not (0 <= self.amount <= 1) or (low_open and self.amount == 0) or self.amount != self.amount:
            span = "above 0 and at most 1" if low_open else "between 0 and 1"
            raise BadInputError(f"--{self.metric} must be {span}, not {self.amount}.")
