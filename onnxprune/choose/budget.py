"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from onnxprune.choose.checks import number
from onnxprune.errors import BadInputError, quoted

TargetName = Literal["ratio", "macs", "params", "size", "speedup", "latency", "max_drop"]
TARGETS: dict[TargetName, str] = {
    "ratio": "Remove this share of the units of every group.",
    "macs": "Keep at most this share of the multiply-accumulates.",
    "params": "Keep at most this share of the parameters.",
    "size": "Keep at most this share of the weights' bytes.",
    "speedup": "Make a run so many times as fast, by time measured where --runner says.",
    "latency": "Make a run take at most so many milliseconds, or such a share of the original's time (50%).",
    "max_drop": "Keep as few multiply-accumulates (or as little time, --cost latency) as possible at this loss of the --metric or less.",
}
TIMES: tuple[TargetName, ...] = ("speedup", "latency")
AUTO = 8


FLOOR = 0.8  # of the MACs: on made-up inputs nobody sees what a smaller model has forgotten
USUAL = 0.5


def flag_of(metric: TargetName) -> str:
    """How the command line writes it."""
    return f"--{metric.replace('_', '-')}"


@dataclass(frozen=True, init=False)
class Budget:
    """What to reach: `Budget("macs", 0.5)` keeps half of the multiply-accumulates.

    metric: `ratio` removes the share `amount` of the units of every group; `macs`, `params` and `size` (bytes of the weights) keep at
    most the share `amount` of the original's; `speedup` makes a run `amount` times as fast, `latency` makes it take `amount`
    milliseconds at most, both measured; `max_drop` keeps as few multiply-accumulates (or as little time, by the option `cost`) as
    possible while the option `metric` (see `Options`) gets worse by no more than `amount`.
    amount: a share, 0 to 1; for `speedup` 1 or more; for `latency` above 0, or a share of the original's time as a text such as "50%",
    which is a speedup of 2; for `max_drop` a loss in units of the metric, 0 or more.
    Raises `BadInputError` for anything else.
    """

    metric: TargetName
    amount: float

    def __init__(self, metric: TargetName, amount: float | str) -> None:
        if not isinstance(metric, str) or metric not in get_args(TargetName):
            raise BadInputError(f"Unknown target {metric!r}; choose one of {', '.join(get_args(TargetName))}.")
        flag = flag_of(metric)
        if metric == "latency" and isinstance(amount, str) and amount.strip().endswith("%"):
            metric, amount = "speedup", 100 / _percent(flag, amount)
        elif metric == "latency" and isinstance(amount, str):
            try:
                amount = float(amount)
            except ValueError:
                raise BadInputError(
                    f"{flag} takes milliseconds (3.5) or a share (50%), not {quoted(amount)}."
                ) from None
        known = number(*SPANS[metric][:2], above=metric in ABOVE, span=SPANS[metric][2])(flag, amount)
        object.__setattr__(self, "metric", metric)
        object.__setattr__(self, "amount", known)

    @property
    def is_time(self) -> bool:
        """Is it about measured time?"""
        return self.metric in TIMES

    @property
    def cost(self) -> str:
        """Name of the cost that it limits (`CostModel.of`)."""
        return "latency" if self.is_time else self.metric

    def goal(self, total: float) -> float:
        """The most that the cost may be. total: the original's."""
        if self.metric == "latency":
            return self.amount
        return total / self.amount if self.metric == "speedup" else total * self.amount


INFINITE = float("inf")
SPANS: dict[TargetName, tuple[float, float, str]] = {
    "ratio": (0, 1, "between 0 and 1"),
    "macs": (0, 1, "above 0 and at most 1"),
    "params": (0, 1, "above 0 and at most 1"),
    "size": (0, 1, "above 0 and at most 1"),
    "speedup": (1, INFINITE, "1 or more (2 makes a run take half the time)"),
    "latency": (0, INFINITE, "above 0 milliseconds, or a share such as 50%"),
    "max_drop": (0, INFINITE, "0 or more"),
}
ABOVE = ("macs", "params", "size", "latency")


def _percent(flag: str, text: str) -> float:
    try:
        found = float(text.strip()[:-1])
    except ValueError:
        found = -1.0
    if not 0 < found <= 100:
        raise BadInputError(f"{flag} must be above 0% and at most 100% of the original's time, not {quoted(text)}.")
    return found


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
