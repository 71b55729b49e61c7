"""The parts of a report of `prune`, as typed values: names, order and meaning are those of its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxprune.analyse.sources import Kind
from onnxprune.calibrate.coverage import Coverage
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.regions import Span
from onnxprune.cut.plan import Pair
from onnxprune.groups.units import Pin
from onnxprune.proof.elsewhere import Elsewhere
from onnxprune.runtime import speedup


@dataclass(frozen=True)
class GroupRow:
    """Units that can only be removed alike, and how many went.

    id: the group's name in this analysis, such as `g12`; the plan has the same.
    kind: `channels` (positions of one axis), `blocks` (positions of each head alike) or `rows` (whole heads, convolution groups).
    origin: the node and the axis that the units come from.
    units: how many there were.
    removable: how many of them may go at most.
    exact: does removing some equal setting them to zero in the original? Not where a norm is computed over them.
    pins: why the others have to stay, each with a remedy.
    removed: how many are gone.
    """

    id: str
    kind: str
    origin: str
    units: int
    removable: int
    exact: bool
    pins: tuple[Pin, ...]
    removed: int


@dataclass(frozen=True)
class Declined:
    """A reason that keeps whole groups from being pruned.

    reason: what holds them, with node, operator and axis.
    remedy: what the user can do about it; empty where there is nothing.
    groups: how many groups it holds.
    units: how many units those have together.
    """

    reason: str
    remedy: str
    groups: int
    units: int


@dataclass(frozen=True)
class CostPairs:
    """What the model costs, before and after.

    macs: multiply-accumulates at the observed batch size.
    params: stored weights.
    bytes: of the file, with external data.
    samples: the observed batch size. Where a model's batch is dynamic that is 2, as one sample does not tell the batch from other axes of
        size 1.
    """

    macs: Pair[int] | None
    params: Pair[int] | None
    bytes: Pair[int]
    samples: int = 1


@dataclass(frozen=True)
class NotJudged:
    """An output that the model is not judged by.

    output: its name.
    reason: why, in words.
    by: the tensors that it follows from and that are judged instead.
    """

    output: str
    reason: str
    by: tuple[str, ...]


def not_judged(judged: Judged) -> tuple[NotJudged, ...]:
    """The outputs that a model is not judged by."""
    return tuple(NotJudged(output, why, by) for output, (why, by) in judged.follows.items())


@dataclass(frozen=True)
class Decided:
    """Where values decide a size, and layers with weights come behind: while models are compared, the original decides for both.

    node: what makes as many positions as values say.
    tensor: the whole numbers (or answers) that say it, taken from the original.
    """

    node: str
    tensor: str


def decided(judged: Judged) -> tuple[Decided, ...]:
    """By node, what the original decides."""
    return tuple(Decided(d.node, d.tensor) for d in judged.decisions)


@dataclass(frozen=True)
class CalibrationSummary:
    """The inputs that importance was measured on and weights were fitted to.

    samples: how many, of the user's or made up.
    made_samples: how many more were patched together from them.
    held_out: how many of all were kept from the fits, to judge them by.
    decided: sizes that depend on values, and on whose.
    held_by: what was held out as a whole: a `sample`, a `group` (the array `groups`), a `file` or a `folder`.
    sources: how many of these there are, and how many are held out; null by sample.
    covered: how many of the model's answers, of the ids that it knows, and of the channels and places of its outputs came up in the
        user's inputs.
    spans: from where to where outputs that are numbers went on them.
    passes: runs over the model that it took.
    tapped_tensors: inside the model, how many tensors were read.
    made_up: true where the user gave none.
    mixed_blocks: blocks of units that were turned into principal directions (`--mix`).
    judged_by: tensors of which damage and divergence are: outputs, or what they follow from.
    not_judged: outputs that are none of these.
    """

    samples: int
    made_samples: int
    held_out: int
    passes: int
    tapped_tensors: int
    made_up: bool
    mixed_blocks: int
    judged_by: tuple[str, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()
    decided: tuple[Decided, ...] = ()
    held_by: Kind = "sample"
    sources: tuple[int, int] | None = None
    covered: tuple[Coverage, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class FitRow:
    """What became of one layer in the repair.

    layer: key (first output) of its node.
    error: of its output on held-out samples, relative, before and after the fit.
    ridge: penalty of the least squares; `bias` where only the bias was fitted, null where the layer stayed as it was.
    """

    layer: str
    error: Pair[float]
    ridge: float | Literal["bias"] | None


@dataclass(frozen=True)
class RepairSummary:
    """What fitting the remaining weights anew has gained.

    recover: how, `lsq` or `bias`.
    layers: how many layers could be fitted.
    fitted: how many were.
    damage: divergence of the model's outputs from the original's on held-out samples, before and after.
    fits: layer by layer.
    unpaired: layers that were left out: which rows they see depends on values, and in the pruned model they see others.
    """

    recover: str
    layers: int
    fitted: int
    damage: Pair[float | None]
    fits: tuple[FitRow, ...]
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What training towards the original has gained (`--tune`), on the user's own inputs and without labels.

    minutes: of training.
    blocks: parts of the network, between tensors that the original has, too, that were first trained on their own and are better for it.
    steps: of training the whole network.
    best_step: the step whose model is written, the best by inputs that were not trained on; 0 where that is the one before these steps.
    stopped: why training ended.
    loss: distance of the model's outputs from the original's on inputs that were not trained on, before and after.
    samples: inputs that were trained on.
    held_out: inputs that it was judged by: those that the repair held out, too.
    features: tensors inside that were compared beside the outputs.
    constants: how many of the model's were changed.
    """

    minutes: float
    blocks: int
    steps: int
    best_step: int
    stopped: str
    loss: Pair[float]
    samples: int
    held_out: int
    features: tuple[str, ...]
    constants: int


@dataclass(frozen=True)
class Variant:
    """One model of the table that `--then-quantize` makes: the original and the pruned model, each as it is and quantized.

    name: `original`, `pruned`, `quantized` or `pruned and quantized`.
    bytes: of its file.
    ms: median milliseconds per run in ONNX Runtime, one thread.
    divergence: of its outputs from the original's, on held-out samples.
    top1: share (0 to 1) of held-out samples with another top class; null where the outputs have no classes.
    loss: by `--metric`, on held-out samples.
    """

    name: str
    bytes: int
    ms: float
    divergence: float
    top1: float | None
    loss: float


@dataclass(frozen=True)
class BypassRow:
    """A tensor that was replaced by an earlier one.

    tensor: its key in the original.
    by: key of the tensor that is read instead.
    nodes: how many nodes have no purpose any more.
    macs: multiply-accumulates that go with them, at the observed batch size.
    damage: divergence from the original when it was chosen; null where that was not measured.
    """

    tensor: str
    by: str
    nodes: int
    macs: int
    damage: float | None


@dataclass(frozen=True)
class BypassDeclined:
    """A tensor that could have been replaced, and why it was not.

    tensor: its key in the original.
    by: key of the tensor that could be read instead.
    macs: multiply-accumulates that it would save, at the observed batch size.
    change: mean square of the two tensors' difference, relative to the variance of the first.
    damage: divergence from the original with it; null where that was not measured.
    reason: why not.
    """

    tensor: str
    by: str
    macs: int
    change: float
    damage: float | None
    reason: str


@dataclass(frozen=True)
class Depth:
    """Layers and nodes (`--depth`).

    mode: `auto` or `only`; `off` where a plan that has bypasses was replayed so.
    channels_alone: divergence on held-out samples at the same cost without bypasses; null where that was not measured.
    bypassed: what went.
    declined: what was looked at and stayed.
    """

    mode: str
    channels_alone: float | None
    bypassed: tuple[BypassRow, ...]
    declined: tuple[BypassDeclined, ...]


@dataclass(frozen=True)
class ResolutionRow:
    """A resolution that was looked at.

    size: height and width inside the model, in pixels.
    macs: share (0 to 1) of the original's multiply-accumulates that is left at it, before channels go; null where it was not made.
    damage: divergence of the finished model from the original on held-out samples; null where it was not made.
    verdict: what became of it.
    """

    size: tuple[int, int]
    macs: float | None
    damage: float | None
    verdict: str


@dataclass(frozen=True)
class Resolutions:
    """Pictures inside the model (`--resolution`); what it is fed stays as it is.

    input: the input that holds the pictures.
    before: height and width of the input, in pixels.
    after: those at which the model works.
    own_size: divergence on held-out samples of the model that meets the target at its own resolution; null where there is none.
    looked: the resolutions that were looked at, in order.
    """

    input: str
    before: tuple[int, int]
    after: tuple[int, int]
    own_size: float | None
    looked: tuple[ResolutionRow, ...]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run, both models in turn.

    before: median of the original.
    after: median of the result.
    speedup: median over the rounds of before / after.
    interval: from where to where the speedup is certain to 95 %; where 1 lies within, it was not measurable.
    runs: rounds, each of which ran both models.
    spread: shortest and longest round of the original, then of the result.
    runner: where they were timed.
    differences: how far the outputs there are from those on ONNX Runtime's CPU provider, relative to their scale, of the original and of
        the result; left out on that provider, and where the runner gives no outputs.
    samples: of a run.
    """

    before: float
    after: float
    speedup: float
    interval: tuple[float, float]
    runs: int
    spread: tuple[tuple[float, ...], ...]
    runner: str
    differences: tuple[float, ...] | None = None
    samples: int = 1

    @staticmethod
    def of(found: Elsewhere) -> Latency:
        """Rounded."""
        before, after = found.times
        spread = tuple((round(min(t.rounds), 3), round(max(t.rounds), 3)) for t in found.times)
        ratio = speedup(before.rounds, after.rounds)
        return Latency(
            before=round(before.median, 3),
            after=round(after.median, 3),
            speedup=round(ratio.ratio, 3),
            interval=(round(ratio.low, 3), round(ratio.high, 3)),
            runs=len(before.rounds),
            spread=spread,
            runner=found.runner,
            differences=found.differences,
            samples=found.samples,
        )
