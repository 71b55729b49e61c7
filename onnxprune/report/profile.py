"""What `onnxprune profile` says: where a run's time goes, what pruning could save of it, and what to do about the rest.

Times are milliseconds of one run without the profiler. Kernels and what lies outside of them add up to the run, so shares add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.report.drawing import Graph

Bound = Literal["compute", "memory", "small", "layout", "other", "unknown"]
BOUNDS: dict[str, str] = {
    "compute": "multiplies",
    "memory": "moves bytes",
    "small": "too small: what it takes is being started",
    "layout": "brings a tensor into another form, put in by ONNX Runtime",
    "other": "neither multiplies nor is held up by memory",
    "unknown": "not mapped to the file",
}


@dataclass(frozen=True)
class ProfiledKernel:
    """One kernel of the graph that ONNX Runtime runs, and what it took.

    node: key of the node of the file that it is about (its first output); empty where ONNX Runtime put it in or nothing is known of it.
    name: of that node, for people; of one that was put in, the node beside it.
    operator: of the file, fused ones with +, such as `Conv+Add+Relu`.
    kernel: the operator that runs, such as `FusedConv`, with its domain where it has one.
    provider: the execution provider that runs it.
    fused: keys of the other nodes that it computes.
    groups: ids of the groups whose units its cost depends on.
    ms: of a run, all calls together, without kernels that it runs itself. share: of the run.
    calls: in a run.
    macs: of a run. gmacs_per_s: achieved; null where it has no MACs.
    bytes: of inputs, weights and outputs. gb_per_s: those by its time.
    bound: what it is held up by.
    prunable_ms: what goes at most if everything goes that may.
    threaded: does it split its work over threads? Null where one thread was given.
    is_blocked: a kernel that works on blocks of channels.
    """

    node: str
    name: str
    operator: str
    kernel: str
    provider: str
    fused: tuple[str, ...]
    groups: tuple[str, ...]
    ms: float
    share: float
    calls: float
    macs: float
    gmacs_per_s: float | None
    bytes: float
    gb_per_s: float
    bound: Bound
    prunable_ms: float
    threaded: bool | None
    is_blocked: bool


@dataclass(frozen=True)
class Total:
    """Kernels that have something in common.

    name: what it is: an operator, the id of a group.
    about: more of it: where the units of a group come from.
    ms: of a run. share: of the run. kernels: how many. macs: of a run. gmacs_per_s: achieved; null where there are no MACs.
    """

    name: str
    about: str
    ms: float
    share: float
    kernels: int
    macs: float
    gmacs_per_s: float | None


@dataclass(frozen=True)
class Part:
    """A part of the run; all parts together are the run.

    name: `prunable` (goes at most if all goes that may), a `bound` of kernels' time that stays, or `session` (outside of kernels).
    ms: of a run. share: of the run.
    """

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class ModelProfile:
    """One model.

    model: its file, or what it is called.
    run_ms: of a run that nothing interrupts: its kernels and the time outside of them.
    measured_ms: of a run as `bench` times it, the median; other programs interrupt it. load_ms: until it is loaded.
    runs: that were profiled.
    macs: of a run.
    kernels: by time, the longest first. outside_ms: of the run, outside of kernels.
    parts: what pruning could save at most, and what stays, by reason.
    operators: by operator. groups: by group; time of a kernel that depends on several is shared equally by them.
    mapped: share of the kernels' time that is known to be of nodes of the file, or of what ONNX Runtime put in between them.
    has_graph: the graph that runs could be read; where a provider compiles it, only names are known.
    """

    model: str
    run_ms: float
    measured_ms: float
    load_ms: float
    runs: int
    macs: float
    kernels: tuple[ProfiledKernel, ...]
    outside_ms: float
    parts: tuple[Part, ...]
    operators: tuple[Total, ...]
    groups: tuple[Total, ...]
    mapped: float
    has_graph: bool

    def part(self, name: str) -> float:
        """Milliseconds of a part; 0 where there is none."""
        return sum(p.ms for p in self.parts if p.name == name)


@dataclass(frozen=True)
class Compared:
    """A kernel of the original and what it became.

    node: key of the node of the original; empty for kernels that were put in and for the time outside of kernels.
    name: of it, for people. operator: as of `ProfiledKernel`.
    before_ms, after_ms: of a run; 0 where there is none.
    before_macs, after_macs: of a run.
    expected_ms: the time before by the MACs that are left, or by the bytes where there are none.
    lost_ms: how much more it takes than that.
    reason: why, where that is known.
    """

    node: str
    name: str
    operator: str
    before_ms: float
    after_ms: float
    before_macs: float
    after_macs: float
    expected_ms: float
    lost_ms: float
    reason: str


@dataclass(frozen=True)
class Finding:
    """Something that takes time, and what to do about it.

    kind: one word, for programs.
    model: the model that it is about.
    where: name of the node, where it is about one.
    ms: the time that it is about, of a run.
    text: what it is. advice: what to do.
    """

    kind: str
    model: str
    where: str
    ms: float
    text: str
    advice: str


@dataclass(frozen=True)
class ProfileReport:
    """All of it.

    onnxprune: the version that measured. engine: what ran the models.
    threads: of an operator; 0 for one per core.
    inputs: sizes of the inputs that the models ran on, by name.
    block: channels that convolutions on the CPU take together on this machine; 0 where they do not.
    gb_per_s: what one thread copies here, read and written.
    launch_ms: what a kernel with nothing to do takes.
    model: the model, the original where two were given. pruned: the other.
    compared: node by node, the largest disappointments first; where two models were given.
    findings: by time, the most first.
    command: the words of the command that did it; left out where it was called from Python.
    graph: the nodes of the model.
    """

    onnxprune: str
    engine: str
    threads: int
    inputs: dict[str, tuple[int, ...]]
    block: int
    gb_per_s: float
    launch_ms: float
    model: ModelProfile
    pruned: ModelProfile | None = None
    compared: tuple[Compared, ...] = ()
    findings: tuple[Finding, ...] = ()
    command: tuple[str, ...] = ()
    graph: Graph | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        return to_json(self.to_dict())
