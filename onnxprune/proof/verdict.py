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
class Bolder:
    """The first model of the sequence that did not keep to the limit (`--max-drop`).

    macs: the share of the multiply-accumulates that it was to keep, or of the time.
    measured: its loss on the samples set aside; null where it is not finite.
    needed: how many samples (or sources) like those would show that it keeps to the limit; null where none would.
    of: what it is a share of, `MACs` or (with `--cost latency`) `time`.
    """

    macs: float
    measured: float
    needed: int | None
    of: str = "MACs"


@dataclass(frozen=True)
class Drop:
    """What is promised of the loss (`--max-drop`): with this confidence it is at most `allowed`, shown on samples that no step has seen.

    metric: by which it was measured (`--metric`).
    allowed: the limit, in the metric's unit.
    measured: the loss on those samples, in the same unit.
    samples: how many they are.
    sources: how many of them count: samples of one source count once.
    held_by: what a source is: a `sample`, a `group` (the array `groups`), a `file` or a `folder`.
    confidence: 0 to 1.
    is_approximate: the confidence is about that, as the metric has no bounds, or is no mean over samples.
    half_needs: how many sources half of the limit would need, if the loss stays as measured; null where none would show it.
    bolder: the next smaller model, which did not keep to the limit; null where there was none.
    """

    metric: str
    allowed: float
    measured: float
    samples: int
    sources: int
    held_by: Kind
    confidence: float
    is_approximate: bool
    half_needs: int | None
    bolder: Bolder | None
