"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from onnxprune.errors import BadInputError

Metric = Literal["ratio", "macs", "params", "size", "max_drop"]
AUTO = 8


@dataclass(frozen=True)
class Budget:
    """What to reach.

    `ratio` removes this share of every group; `macs`, `params` and `size` (bytes of the weights) keep at most this share;
    `max_drop` keeps as little as possible while the metric falls by no more than this on held-out samples.
    """

    metric: Metric
    amount: float

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise BadInputError(f"Unknown target '{self.metric}'; choose one of {', '.join(get_args(Metric))}.")
        option = self.metric.replace("_", "-")
        if self.metric == "max_drop":
            if not 0 <= self.amount < float("inf"):
                raise BadInputError(f"--{option} must be 0 or more, not {self.amount}.")
            return
        low_open = self.metric != "ratio"
        if not (0 <= self.amount <= 1) or (low_open and self.amount == 0):
            span = "above 0 and at most 1" if low_open else "between 0 and 1"
            raise BadInputError(f"--{option} must be {span}, not {self.amount}.")
