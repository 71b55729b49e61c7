"""What one run of `sparsify` made zero and what that is worth, as a typed value; `report/renderer.py` makes text of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.cut.plan import Pair
from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.report.drawing import Graph
from onnxprune.report.values import Decided, Latency, NotJudged
from onnxprune.sparsity.targets import Pattern, Target
from onnxprune.sparsity.weights import Left

RUNTIMES = (
    "ONNX Runtime multiplies zeros like any other number: this model is not faster in it. It is smaller on disk where it is stored "
    "sparse or compressed. For speed, remove whole channels: onnxprune prune, or --then-prune."
)
TENSORRT = (
    "TensorRT can run 2:4 weights on the sparse tensor cores of NVIDIA GPUs since Ampere (trtexec --sparsity=enable, half precision "
    "or 8 bits)."
)


@dataclass(frozen=True)
class Zeros:
    """Zeros among the weights that were looked at.

    weights: how many there are.
    before: how many were zero.
    after: how many are.
    """

    weights: int
    before: int
    after: int


@dataclass(frozen=True)
class SparseLayer:
    """One weight: a stored constant that an operator multiplies by.

    tensor: key of the constant.
    node: the operator that reads it, in words.
    input_axis: what its inputs are, along which N:M patterns are counted, in words.
    shape: of the constant.
    uses: how many operator inputs read it.
    weights: how many numbers it holds.
    zeros: how many of them are zero, before and after.
    criterion: by which they were chosen: `magnitude`, `wanda` or `obs`.
    stored: how it lies in the file.
    """

    tensor: str
    node: str
    input_axis: str
    shape: tuple[int, ...]
    uses: int
    weights: int
    zeros: Pair[int]
    criterion: str
    stored: Literal["dense", "sparse"]


@dataclass(frozen=True)
class Difference:
    """How far the outputs are from the original's.

    error: largest difference of an output, relative to its scale.
    divergence: mean over the samples, as for `prune`.
    top1: share (0 to 1) of samples with another top class; null where the outputs have no classes.
    samples: on how many samples.
    held_out: true where no weight was fitted to them.
    made_up: true where they are not the user's.
    judged_by: tensors that were compared: outputs, or what they follow from.
    not_judged: outputs that are none of these.
    decided: sizes that depend on values, and on whose; where there are such, the original's were taken.
    """

    error: float
    divergence: float
    top1: float | None
    samples: int
    held_out: bool
    made_up: bool
    judged_by: tuple[str, ...]
    not_judged: tuple[NotJudged, ...]
    decided: tuple[Decided, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Bytes, before and after.

    file: of the file, with external data.
    compressed: of the file, zipped; left out for large models.
    """

    file: Pair[int]
    compressed: Pair[int] | None = None


@dataclass(frozen=True)
class DeadGroup:
    """Units that nobody misses, in one group.

    origin: the node and the axis that the units come from.
    kind: `channels`, `blocks` or `rows`, as in a plan.
    units: how many there were.
    removed: how many are gone.
    """

    origin: str
    kind: str
    units: int
    removed: int


@dataclass(frozen=True)
class Dead:
    """What `--then-prune` took away: units that are zero or unread.

    units: how many.
    groups: where.
    error: largest difference to the sparse model's outputs, relative to their scale.
    macs: multiply-accumulates at the observed batch size, before and after; null where nothing was removed.
    params: stored weights, likewise.
    """

    units: int
    groups: tuple[DeadGroup, ...]
    error: float
    macs: Pair[int] | None
    params: Pair[int] | None


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify` did and measured. In JSON, a part that was not asked for is left out, and a number that is not finite is null.

    target: what was asked for, in words.
    criterion: which weights matter: `magnitude`, `wanda` or `obs`.
    zeros: of all layers together.
    layers: every weight that was made sparse.
    left_alone: every weight that was not, with the reason.
    difference: how far the outputs are from the original's.
    bytes: of the file.
    runtimes: sentences on what runs such a model faster.
    seconds: of wall time, by stage.
    pruned: what was removed after that (`--then-prune`).
    latency_ms: milliseconds per run; left out without a benchmark.
    command: the words of the command that did it; left out where it was called from Python.
    model: the original's file, as it was named; left out where it was given as a value.
    graph: the original's nodes.
    """

    target: str
    criterion: str
    zeros: Zeros
    layers: tuple[SparseLayer, ...]
    left_alone: tuple[Left, ...]
    difference: Difference
    bytes: Sizes
    runtimes: tuple[str, ...]
    seconds: dict[str, float]
    pruned: Dead | None = None
    latency_ms: Latency | None = None
    command: tuple[str, ...] = ()
    model: str | None = None
    graph: Graph | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """Indented JSON, as `onnxprune.report.schema("sparsity-report")` describes it."""
        return to_json(self.to_dict())


def zeros_of(layers: tuple[SparseLayer, ...]) -> Zeros:
    """All layers together."""
    return Zeros(
        sum(x.weights for x in layers), sum(x.zeros.before for x in layers), sum(x.zeros.after for x in layers)
    )


def runtimes_for(target: Target) -> tuple[str, ...]:
    """What runs such a model faster."""
    return (RUNTIMES, TENSORRT) if isinstance(target, Pattern) and target.of == 4 else (RUNTIMES,)
