"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from onnxprune.choose.checks import number
from onnxprune.errors import BadInputError, quoted

TargetName = Literal["ratio", "macs", "params", "size", "max_drop"]
TARGETS: dict[TargetName, str] = {
    "ratio": "Remove this share of the units of every group.",
    "macs": "Keep at most this share of the multiply-accumulates.",
    "params": "Keep at most this share of the parameters.",
    "size": "Keep at most this share of the weights' bytes.",
    "max_drop": "Keep as few multiply-accumulates as possible at this loss of the --metric or less.",
}
AUTO = 8


FLOOR = 0.8  # of the MACs: on made-up inputs nobody sees what a smaller model has forgotten
USUAL = 0.5


def flag_of(metric: TargetName) -> str:
    """How the command line writes it."""
    return f"--{metric.replace('_', '-')}"


@dataclass(frozen=True)
class Budget:
    """What to reach: `Budget("macs", 0.5)` keeps half of the multiply-accumulates.

    metric: `ratio` removes the share `amount` of the units of every group; `macs`, `params` and `size` (bytes of the weights) keep at
    most the share `amount` of the original's; `max_drop` keeps as few multiply-accumulates as possible while the option `metric`
    (see `Options`) gets worse by no more than `amount`.
    amount: a share, 0 to 1; for `max_drop` a loss in units of the metric, 0 or more.
    Raises `BadInputError` for anything else.
    """

    metric: TargetName
    amount: float

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or self.metric not in get_args(TargetName):
            raise BadInputError(f"Unknown target {self.metric!r}; choose one of {', '.join(get_args(TargetName))}.")
        flag = flag_of(self.metric)
        if self.metric == "max_drop":
            amount = number(0, span="0 or more")(flag, self.amount)
        elif self.metric == "ratio":
            amount = number(0, 1, span="between 0 and 1")(flag, self.amount)
        else:
            amount = number(0, 1, above=True, span="above 0 and at most 1")(flag, self.amount)
        object.__setattr__(self, "amount", amount)


def usual(has_data: bool) -> Budget:
    """The target where none is given: half of the MACs; without data no less than `FLOOR`."""
    return Budget("macs", USUAL if has_data else FLOOR)


def budget_of(given: Any) -> Budget | None:
    """The budget, where there is one. Raises `BadInputError` for what is none, and says what it may be meant as."""
    if given is None or isinstance(given, Budget):
        return given
    example = 'Budget("macs", 0.5)'
    if isinstance(given, str):
        metric, _, amount = given.partition("=")
        name = metric.strip().lstrip("-").replace("-", "_")
        try:
            meant = Budget(name, float(amount))  # type: ignore[arg-type]
            example = f'Budget("{meant.metric}", {meant.amount:g})'
        except (ValueError, BadInputError):
            pass
    shown = quoted(given) if isinstance(given, str) else f"of type {type(given).__name__}"
    raise BadInputError(f"The budget {shown} is no Budget; give {example}.")
