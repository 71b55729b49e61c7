"""What the comparison with the masked original found."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.analyse.sources import Kind


@dataclass(frozen=True)
class Verdict:
    """How far the pruned model is from the masked original: the original with the removed units forced to zero.

    error: largest difference of an output, relative to that output's scale.
    tolerance: what was allowed, in the same unit.
    exact: true where all groups that lost units are exact; else the reference has its norms computed over what is left.
    masked_activations: how many activations of the original were masked.
    float_noise: what rounding alone changes, in the same unit; null where it was not needed.
    not_compared: outputs of which nothing was compared, as they were empty on all inputs or hold no values that can be read.
    """

    error: float
    tolerance: float
    exact: bool
    masked_activations: int
    float_noise: float | None
    not_compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drop:
    """The loss of the finished model on samples that no step has seen (`--max-drop`).

    metric: by which it was measured (`--metric`).
    allowed: the limit, in the metric's unit.
    measured: the loss, in the same unit.
    samples: on how many samples.
    held_by: what was set aside as a whole: a `sample`, a `group` (the array `groups`), a `file` or a `folder`.
    sources: how many of these the samples are of.
    """

    metric: str
    allowed: float
    measured: float
    samples: int
    held_by: Kind = "sample"
    sources: int = 0


def counted(number: int, what: str) -> str:
    """Such as "1 sample" or "2 samples"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
