"""From what was recorded of a model, and its analysis, to its profile: kernels by node, operator and group.

A kernel's cost depends on a group where a tensor or weight of its main node has units of it. What could be saved of it at most is the
share of its MACs (or, where it has none, of the elements that it reads and gives) that goes if every unit goes that may: more than any
removal can take, as one unit of each group stays, and as no kernel takes less than one with nothing to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from onnxprune.choose.costs import CostModel
from onnxprune.cut.plan import owners
from onnxprune.groups.analysis import Analysis, NotABoxError, Shapes
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps
from onnxprune.model.graph import Node
from onnxprune.report.profile import Bound, ModelProfile, Part, ProfiledKernel, Total
from onnxprune.runtime.events import Timed
from onnxprune.runtime.profile import Recording

SMALL = 4  # times what a kernel with nothing to do takes
STALLED = 0.25  # of the bytes that a copy moves, from where on a kernel without MACs is held up by memory
NOT_MAPPED = "not mapped"


@dataclass(frozen=True)
class Layers:
    """What the analysis says of a model's nodes."""

    analysis: Analysis

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {node.key: node for node in self.analysis.view.graph.walk()}

    @cached_property
    def macs(self) -> dict[str, int]:
        return CostModel(self.analysis).node_macs

    @cached_property
    def _gone(self) -> Bools:
        """Everything that may go."""
        solution = self.analysis.solution
        gone = np.zeros(solution.count, bool)
        for group in solution.groups:
            if group.removable:
                gone[group.classes[~solution.pinned[group.classes]]] = True
        return solution.closure(gone)

    @cached_property
    def _left(self) -> dict[str, float]:
        return CostModel(self.analysis).per_node("macs", self._gone)

    @cached_property
    def _shapes(self) -> Shapes:
        return Shapes(self.analysis, self.analysis.solution.of_units(self._gone))

    @cached_property
    def _owner(self) -> np.ndarray:
        """By unit, the group that it goes with; -1 for none."""
        by_class = owners(self.analysis, self._gone)
        return np.append(by_class, -1)[self.analysis.solution.classes]

    def _maps(self, node: Node) -> Iterable[Maps]:
        for i, key in enumerate((*node.inputs, *node.outputs)):
            use = self.analysis.uses.get((node.key, i)) if i < len(node.inputs) else None
            yield use[1] if use else self.analysis.maps.get(key, ())

    def groups(self, key: str) -> tuple[str, ...]:
        """Ids of the groups that a node's cost depends on."""
        node = self.nodes.get(key)
        if node is None:
            return ()
        found = {int(g) for maps in self._maps(node) for facet in maps for g in np.unique(self._owner[facet]) if g >= 0}
        return tuple(self.analysis.groups[g].id for g in sorted(found))

    def may_shrink(self, tensor: str, axis: int) -> bool:
        """May positions of this axis go? axis: from the end where negative."""
        facets = self.analysis.maps.get(tensor, ())
        return any(f.shape[axis] > 1 and bool((self._owner[f] >= 0).any()) for f in facets if f.ndim)

    def prunable(self, key: str) -> float:
        """Share of a node's cost that goes at most."""
        node = self.nodes.get(key)
        if node is None:
            return 0.0
        macs = self.macs.get(key, 0)
        if macs:
            return 1 - self._left.get(key, 0.0) / macs
        before = after = 0
        for tensor in (*node.inputs, *node.outputs):
            try:
                before += prod(self._shapes.old(tensor))
                after += prod(self._shapes.new(tensor))
            except (KeyError, NotABoxError):
                continue
        return 1 - after / before if before else 0.0

    def name(self, key: str) -> str:
        node = self.nodes.get(key)
        return (node.name if node else "") or key

    def operators(self, keys: Sequence[str], kernel: str) -> str:
        """Of the nodes of a kernel, in the order of the file; of many, the first and the number."""
        listed = [self.nodes[k].op for k in self._order if k in set(keys)] or [kernel]
        return "+".join(listed) if len(listed) <= 4 else f"{listed[0]}+{len(listed) - 1} more"

    @cached_property
    def _order(self) -> list[str]:
        return list(self.nodes)


@dataclass(frozen=True)
class Machine:
    """What bounds kernels here. copied: bytes that a thread copies in a millisecond. block: channels in a block."""

    copied: float
    block: int


def profile_of(name: str, recording: Recording, layers: Layers, machine: Machine) -> ModelProfile:
    """The profile of one model."""
    run = max(sum(t.ms for t in recording.kernels) + recording.outside_ms, 1e-9)
    shared = _sharers(recording.kernels)
    macs = [_macs(t, layers, shared) for t in recording.kernels]
    peak = max((m / t.ms for m, t in zip(macs, recording.kernels, strict=True) if t.ms > run / 100), default=0.0)
    kernels = [
        _kernel(t, m, run, layers, _bound(t, m, peak, recording.launch_ms, machine), recording.launch_ms)
        for m, t in zip(macs, recording.kernels, strict=True)
    ]
    kernels.sort(key=lambda k: -k.ms)
    inside = sum(k.ms for k in kernels)
    known = sum(k.ms for k in kernels if k.bound != "unknown")
    outside = run - inside
    return ModelProfile(
        model=name,
        run_ms=run,
        measured_ms=recording.measured_ms,
        load_ms=recording.load_ms,
        runs=recording.runs,
        macs=float(sum(macs)),
        kernels=tuple(kernels),
        outside_ms=outside,
        parts=_parts(kernels, outside, run),
        operators=_by_operator(kernels, run),
        groups=_by_group(kernels, run, layers),
        mapped=known / inside if inside else 1.0,
        has_graph=recording.is_mapped,
    )


def _sharers(timed: Sequence[Timed]) -> Mapping[str, int]:
    """How many kernels compute a node."""
    found: dict[str, int] = defaultdict(int)
    for t in timed:
        for key in t.kernel.nodes:
            found[key] += 1
    return found


def _macs(timed: Timed, layers: Layers, shared: Mapping[str, int]) -> float:
    return timed.calls * sum(layers.macs.get(k, 0) / shared[k] for k in timed.kernel.nodes)


def _bound(timed: Timed, macs: float, peak: float, launch: float, machine: Machine) -> Bound:
    if timed.kernel.is_put_in:
        return "layout"
    if not timed.kernel.nodes:
        return "unknown"
    if timed.ms <= SMALL * launch * timed.calls:
        return "small"
    if macs:
        return "memory" if timed.bytes / machine.copied > macs / max(peak, 1e-9) else "compute"
    return "memory" if timed.bytes / timed.ms > STALLED * machine.copied else "other"


def _kernel(timed: Timed, macs: float, run: float, layers: Layers, bound: Bound, launch: float) -> ProfiledKernel:
    kernel = timed.kernel
    main = kernel.nodes[0] if kernel.nodes else ""
    about = main or kernel.beside
    ms = max(timed.ms, 1e-9)
    return ProfiledKernel(
        node=main,
        name=layers.name(about) if about else kernel.name,
        operator=layers.operators(kernel.nodes, kernel.op),
        kernel=f"{kernel.domain}::{kernel.op}" if kernel.domain else kernel.op,
        provider=timed.provider,
        fused=kernel.nodes[1:],
        groups=layers.groups(about) if about else (),
        ms=timed.ms,
        share=timed.ms / run,
        calls=timed.calls,
        macs=macs,
        gmacs_per_s=macs / ms / 1e6 if macs else None,
        bytes=timed.bytes,
        gb_per_s=timed.bytes / ms / 1e6,
        bound=bound,
        prunable_ms=layers.prunable(about) * max(0.0, timed.ms - timed.calls * launch) if about else 0.0,
        threaded=timed.threaded,
        is_blocked=kernel.domain.endswith("nchwc"),
    )


# ---------------------------------------------------------------- sums


def _parts(kernels: Sequence[ProfiledKernel], outside: float, run: float) -> tuple[Part, ...]:
    sums = {"prunable": sum(k.prunable_ms for k in kernels)}
    for k in kernels:
        sums[k.bound] = sums.get(k.bound, 0.0) + k.ms - k.prunable_ms
    sums["session"] = outside
    return tuple(Part(name, ms, ms / run) for name, ms in sums.items())


def _by_operator(kernels: Sequence[ProfiledKernel], run: float) -> tuple[Total, ...]:
    parts = [(_operator(k), "", k, 1.0) for k in kernels]
    return _totals(parts, run)


def _operator(kernel: ProfiledKernel) -> str:
    if kernel.bound == "layout":
        return f"{kernel.operator} (put in)"
    return NOT_MAPPED if kernel.bound == "unknown" else kernel.operator


def _by_group(kernels: Sequence[ProfiledKernel], run: float, layers: Layers) -> tuple[Total, ...]:
    origins = {g.id: g.origin for g in layers.analysis.groups}
    parts = []
    for k in kernels:
        if k.bound == "unknown":
            parts.append((NOT_MAPPED, "", k, 1.0))
        elif not k.groups:
            parts.append(("no group", "nothing of it can be removed", k, 1.0))
        parts += [(g, origins.get(g, ""), k, 1 / len(k.groups)) for g in k.groups]
    return _totals(parts, run)


def _totals(parts: Sequence[tuple[str, str, ProfiledKernel, float]], run: float) -> tuple[Total, ...]:
    about = {name: text for name, text, _, _ in parts}
    found: dict[str, list[tuple[ProfiledKernel, float]]] = defaultdict(list)
    for name, _, kernel, share in parts:
        found[name].append((kernel, share))
    made = []
    for name, own in found.items():
        ms, macs = sum(k.ms * s for k, s in own), sum(k.macs * s for k, s in own)
        made.append(
            Total(name, about[name], ms, ms / run, len(own), macs, macs / max(ms, 1e-9) / 1e6 if macs else None)
        )
    return tuple(sorted(made, key=lambda t: -t.ms))
