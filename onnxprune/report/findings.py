"""What takes time, in a sentence each, and what to do about it in another one.

What is said of widths: on the CPU, ONNX Runtime's fastest convolutions (NCHWc, of MLAS) work on blocks of 8 channels (AVX2) or 16
(AVX-512). They take convolutions over two axes whose channels are multiples of 4, and pay for whole blocks; grouped ones only if a group
has whole blocks, or one channel. Anything else runs through an im2col and a matrix product. Matrix products pay for
whole vectors of outputs (`python -m onnxprune.bench steps` shows the steps of a machine).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnxprune.errors import quoted
from onnxprune.model.graph import Node
from onnxprune.report.profile import BOUNDS, Finding, ModelProfile, ProfiledKernel
from onnxprune.report.profiling import Layers
from onnxprune.report.side_by_side import Pair, macs_of, parted
from onnxprune.words import counted

LEAST = 0.01  # share of the run, from where on a finding is worth a line
MUCH = 0.2
NOISY = 1.25
ALIGNED = 4  # channels that a blocked convolution needs multiples of
WASTE = 0.05  # share of a block's work that may be padding
CPU = "CPUExecutionProvider"
NAMED = 3


@dataclass(frozen=True)
class Subject:
    """A model to find things in. block: channels of a block, or 0. provider: the one that was asked for."""

    profile: ModelProfile
    layers: Layers
    block: int
    threads: int
    provider: str = CPU

    def finding(self, kind: str, where: str, ms: float, text: str, advice: str) -> Finding:
        return Finding(kind, self.profile.model, where, ms, text, advice)

    def share(self, ms: float) -> str:
        return f"{ms / self.profile.run_ms:.0%} of the run"


def findings_of(subject: Subject) -> list[Finding]:
    """Of one model, those about the most time first; what pruning can save at most leads."""
    found = [f for look in LOOKS for f in look(subject)]
    least = LEAST * subject.profile.run_ms
    return sorted((f for f in found if f.ms >= least or f.kind in ALWAYS), key=lambda f: (f.kind != "bound", -f.ms))


ALWAYS = ("bound", "no-macs", "graph")


# ---------------------------------------------------------------- of the whole run


def _at_most(s: Subject) -> Iterator[Finding]:
    ms, profile = s.profile.part("prunable"), s.profile
    rest = max((p for p in profile.parts if p.name not in ("prunable", "compute")), key=lambda p: p.ms, default=None)
    text = f"pruning can save {s.share(ms)} at most, if everything goes that may; {s.share(profile.run_ms - ms)} stays"
    if ms / profile.run_ms >= 0.5:
        advice = "aim at the layers and groups that take the most time"
    elif rest is not None and rest.ms > profile.part("compute"):
        what = (
            "the time outside of kernels"
            if rest.name == "session"
            else f"kernels of one kind ({BOUNDS.get(rest.name, rest.name)})"
        )
        advice = f"look first at {what}: {s.share(rest.ms)}"
    else:
        advice = "most of it is in layers that nothing may be removed from; 'onnxprune inspect' says what pins them and the remedy"
    yield s.finding("bound", "", ms, text, advice)


def _no_macs(s: Subject) -> Iterator[Finding]:
    if not s.profile.macs:
        text = "no operator of it multiplies and sums (or none that onnxprune knows the MACs of)"
        yield s.finding("no-macs", "", 0.0, text, "nothing to gain from fewer MACs; judge by milliseconds")


def _graph(s: Subject) -> Iterator[Finding]:
    lost = sum(k.ms for k in s.profile.kernels if k.bound == "unknown")
    if not s.profile.has_graph:
        text = (
            f"the provider compiles the graph, so kernels are known by their names only; {s.share(lost)} is not mapped"
        )
        yield s.finding("graph", "", lost, text, "profile with --provider cpu to see layers")
    elif lost:
        names = ", ".join(f"{k.operator} {quoted(k.name)}" for k in s.profile.kernels if k.bound == "unknown")
        yield s.finding(
            "not-mapped", "", lost, f"{s.share(lost)} is in kernels of which no node is known ({names[:120]})", "none"
        )


def _noise(s: Subject) -> Iterator[Finding]:
    p = s.profile
    if p.measured_ms > NOISY * p.run_ms:
        text = f"a run takes {p.measured_ms:.3g} ms as timed from outside and {p.run_ms:.3g} ms by its kernels: other programs interrupt it"
        yield s.finding(
            "noise",
            "",
            p.measured_ms - p.run_ms,
            text,
            "measure again on a machine that does nothing else before you rely on a row",
        )


def _session(s: Subject) -> Iterator[Finding]:
    ms = s.profile.outside_ms
    if ms >= 0.15 * s.profile.run_ms:
        text = f"{s.share(ms)} lies outside of kernels: inputs and outputs, and the start of each of {len(s.profile.kernels)} kernels"
        yield s.finding(
            "session",
            "",
            ms,
            text,
            "run more samples at once (--batch); fewer channels do not change it, fewer nodes do (--depth)",
        )


def _small(s: Subject) -> Iterator[Finding]:
    own = [k for k in s.profile.kernels if k.bound == "small"]
    ms = sum(k.ms for k in own)
    if ms >= MUCH * s.profile.run_ms:
        text = f"{s.share(ms)} is in {counted(len(own), 'kernel')} so small that starting them is most of their time"
        yield s.finding(
            "small",
            "",
            ms,
            text,
            "nothing to gain from fewer channels there; remove layers (--depth), or run more samples at once (--batch)",
        )


def _memory(s: Subject) -> Iterator[Finding]:
    own = [k for k in s.profile.kernels if k.bound == "memory"]
    ms = sum(k.ms for k in own)
    if ms >= MUCH * s.profile.run_ms:
        names = _most(own)
        text = f"{s.share(ms)} is in kernels that wait for memory ({names})"
        yield s.finding(
            "memory",
            "",
            ms,
            text,
            "they get faster by the bytes that go, not by the MACs: remove channels of large activations, at the front",
        )


def _threads(s: Subject) -> Iterator[Finding]:
    own = [k for k in s.profile.kernels if k.threaded is False]
    ms, cores = sum(k.ms for k in own), os.cpu_count() or 1
    if ms >= MUCH * s.profile.run_ms:
        text = f"{s.share(ms)} is in kernels that do not split their work over threads ({_most(own)})"
        yield s.finding("threads", "", ms, text, "more threads do not help there; more samples at once may (--batch)")
    big = sum(k.ms for k in s.profile.kernels if k.bound == "compute")
    if s.threads == 1 and cores > 1 and s.provider == CPU and big >= 0.5 * s.profile.run_ms and big >= 1:
        yield s.finding(
            "one-thread",
            "",
            big,
            f"{s.share(big)} multiplies, on one thread of a machine with {cores} cores",
            f"see --threads {cores}, if the device has them free",
        )


# ---------------------------------------------------------------- of kinds of kernels


PUT_IN = {
    "Reorder": (
        "brings tensors into the layout of the blocked convolutions and back",
        "operators between convolutions that have no such layout (LayerNormalization, Concat, Transpose, Slice) cost this; it falls with "
        "the channels there, and goes with those operators",
    ),
    "Cast": (
        "turns numbers into another type, as there is no kernel for theirs",
        "on the CPU, use a float32 model: float16 is turned into float32 around most operators",
    ),
    "Memcpy": (
        "copies between devices",
        "operators that the provider does not take cause it; see which run on the CPU",
    ),
    "Transpose": (
        "moves axes",
        "export without the change of layout (NCHW throughout), so that there is nothing to move",
    ),
    "Reshape": ("reshapes for a matrix product", "nothing to gain; it takes next to nothing"),
}


def _put_in(s: Subject) -> Iterator[Finding]:
    for start, (text, advice) in PUT_IN.items():
        own = [k for k in s.profile.kernels if k.bound == "layout" and k.operator.startswith(start)]
        if own:
            ms = sum(k.ms for k in own)
            what = f"{counted(len(own), f'{start} kernel')} put in by ONNX Runtime: {s.share(ms)}; each {text}"
            yield s.finding("layout", own[0].name, ms, what, advice)


def _transposes(s: Subject) -> Iterator[Finding]:
    own = [k for k in s.profile.kernels if k.node and k.operator == "Transpose"]
    ms = sum(k.ms for k in own)
    if ms >= 0.05 * s.profile.run_ms:
        text = f"{s.share(ms)} is in Transpose nodes of the file ({_most(own)})"
        yield s.finding(
            "transpose",
            own[0].name,
            ms,
            text,
            "export them away where they only change the layout; otherwise they fall with the channels",
        )


def _off_provider(s: Subject) -> Iterator[Finding]:
    own = [k for k in s.profile.kernels if k.provider and k.provider != s.provider and k.bound != "layout"]
    if own:
        ms = sum(k.ms for k in own)
        kinds = ", ".join(dict.fromkeys(k.operator for k in own))
        text = f"not all runs there: {counted(len(own), 'kernel')} on {own[0].provider} though {s.provider} was asked for ({kinds[:120]})"
        yield s.finding(
            "off-provider",
            own[0].name,
            ms,
            text,
            "pruning cannot bring them back; replace these operators, or export for an opset that the provider takes",
        )


# ---------------------------------------------------------------- widths


@dataclass(frozen=True)
class _Convolution:
    """Channels [inputs, outputs] of a convolution; inputs, outputs of one group are `inputs // groups`, `outputs // groups`."""

    inputs: int
    outputs: int
    groups: int

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.inputs == self.outputs

    @property
    def widths(self) -> str:
        return f"{self.inputs} -> {self.outputs} channels" + (f" in {self.groups} groups" if self.groups > 1 else "")


def _convolution(node: Node, layers: Layers) -> _Convolution | None:
    """Of a convolution over two axes in float32; others have no blocked kernels."""
    shape = layers.analysis.observation.shapes
    x, y = shape.get(node.inputs[0], ()), shape.get(node.outputs[0], ())
    if node.op != "Conv" or node.domain or len(x) != 4 or len(y) != 4:
        return None
    return _Convolution(x[1], y[1], int(node.attrs.get("group", 1)))


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _widths(s: Subject) -> Iterator[Finding]:
    if not s.block or s.provider != CPU:
        return
    for k in s.profile.kernels:
        node = s.layers.nodes.get(k.node)
        if node is None or k.provider != CPU or k.bound == "layout":
            continue
        found = _convolution(node, s.layers)
        if found is not None and "Conv" in k.kernel and "QLinear" not in k.kernel and "Integer" not in k.kernel:
            if any(s.layers.may_shrink(t, 1) for t in (node.inputs[0], node.outputs[0])):
                yield from _padded(s, k, found) if k.is_blocked else _unblocked(s, k, found)
        elif node.op in ("MatMul", "Gemm") and not node.domain and k.kernel.endswith(("MatMul", "Gemm")):
            yield from _product(s, k, node)


def _product(s: Subject, k: ProfiledKernel, node: Node) -> Iterator[Finding]:
    """A matrix product gives whole vectors of as many numbers as a block has channels."""
    shape = s.layers.analysis.observation.shapes.get(node.outputs[0], ())
    n = shape[-1] if shape else 0
    waste = 1 - n / _up(n, s.block) if n > s.block else 0.0
    if waste >= WASTE and k.bound == "compute" and s.layers.may_shrink(node.outputs[0], -1):
        text = f"{k.operator} {quoted(k.name)}: {n} outputs, computed in vectors of {s.block}: {waste:.0%} of its work is padding"
        advice = (
            f"keep {n // s.block * s.block} or {_up(n, s.block)}: what lies between costs as much as {_up(n, s.block)}"
        )
        yield s.finding("width", k.name, k.ms * waste, text, advice)


def _padded(s: Subject, k: ProfiledKernel, c: _Convolution) -> Iterator[Finding]:
    """It works on whole blocks: what is over the last one costs as much as a block."""
    own = 1.0
    for n in (c.outputs,) if c.is_depthwise else (c.inputs, c.outputs):
        own *= n / _up(n, s.block) if n >= s.block or n == c.outputs else 1.0
    if 1 - own < WASTE or c.outputs <= ALIGNED:
        return
    text = f"{k.operator} {quoted(k.name)}: {c.widths}, computed as whole blocks of {s.block}: {1 - own:.0%} of its work is padding"
    yield s.finding(
        "width", k.name, k.ms * (1 - own), text, f"round to blocks: --round-to {s.block} ({_rounded(c, s.block)})"
    )


def _unblocked(s: Subject, k: ProfiledKernel, c: _Convolution) -> Iterator[Finding]:
    """It runs through a matrix product. Said where the widths are why."""
    sides = {"inputs": c.inputs, "outputs": c.outputs}
    if c.groups > 1 and not c.is_depthwise:
        per = c.inputs // c.groups, c.outputs // c.groups
        text = (
            f"{k.operator} {quoted(k.name)}: {c.widths} ({per[0]} -> {per[1]} in each) runs without the blocked kernels, "
            f"which take whole blocks of {s.block} per group"
        )
        yield s.finding(
            "grouped",
            k.name,
            k.ms,
            text,
            f"keep its groups as they are (--exclude {quoted(k.name)}), or keep {s.block} channels in each",
        )
        return
    odd = [n for side, n in sides.items() if n % ALIGNED and (side == "outputs" or n >= s.block)]
    if not odd:
        return
    text = (
        f"{k.operator} {quoted(k.name)}: {c.widths}, no multiple of {ALIGNED}, so it runs without the kernels that work on "
        f"blocks of {s.block} channels"
    )
    yield s.finding("width", k.name, k.ms, text, f"round to blocks: --round-to {s.block} ({_rounded(c, s.block)})")


def _rounded(c: _Convolution, block: int) -> str:
    """The nearest whole blocks of the widths that are none."""
    odd = dict.fromkeys(n for n in (c.inputs, c.outputs) if n % block and n > 3)
    return ", ".join(f"{max(block, n // block * block)} or {_up(n, block)} instead of {n}" for n in odd)


def _most(kernels: Sequence[ProfiledKernel]) -> str:
    """The operators that take the most."""
    times: Counter[str] = Counter()
    for k in kernels:
        times[k.operator] += int(1e6 * k.ms)
    listed = [name for name, _ in times.most_common(NAMED)]
    return ", ".join(listed) + (", …" if len(times) > NAMED else "")


LOOKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _at_most, _no_macs, _graph, _noise, _session, _small, _memory, _threads, _put_in, _transposes, _off_provider, _widths,
)  # fmt: skip


# ---------------------------------------------------------------- of two models


def findings_between(before: Subject, after: Subject, pairs: Sequence[Pair]) -> list[Finding]:
    """What became of the original's kernels; what `findings_of` says of the pruned model is not said again."""
    found = [f for pair in pairs if pair.before and pair.after for f in _of_pair(after, pair)]
    same = [p for p in pairs if p.before and p.after and p.main.macs and macs_of(p.before) == macs_of(p.after)]
    ms = sum(k.ms for p in same for k in p.after)
    if ms >= MUCH * after.profile.run_ms:
        first = max(same, key=lambda p: sum(k.ms for k in p.after)).main
        text = f"{after.share(ms)} is in {counted(len(same), 'kernel')} from which nothing was removed ({quoted(first.name)} first)"
        found.append(
            after.finding(
                "untouched",
                first.name,
                ms,
                text,
                "'onnxprune inspect' says what pins them, or lift --exclude; else the others must give more",
            )
        )
    found += _faster(before, after)
    return [f for f in found if f.ms >= LEAST * after.profile.run_ms or f.kind == "speedup"]


def _of_pair(s: Subject, pair: Pair) -> Iterator[Finding]:
    first, now = pair.before[0], pair.after[0]
    lost = sum(k.ms for k in pair.after) - pair.expected_ms
    for k in parted(pair):
        text = f"{k.operator} {quoted(k.name)} was part of {first.operator} and runs on its own now"
        yield s.finding(
            "unfused",
            k.name,
            k.ms,
            text,
            "keep what held them together: round widths (--round-to 8), or leave the node alone (--exclude)",
        )
    if first.node and first.is_blocked and not now.is_blocked and "Conv" in now.kernel:
        text = f"{now.operator} {quoted(now.name)} ran on blocks of channels in the original and does not any more"
        yield s.finding(
            "unblocked",
            now.name,
            max(lost, 0.0),
            text,
            f"round its widths (--round-to {s.block or 8}), or leave it alone (--exclude)",
        )
    if first.node and first.provider != now.provider:
        text = f"{now.operator} {quoted(now.name)} ran on {first.provider} and runs on {now.provider} now"
        yield s.finding(
            "off-provider", now.name, now.ms, text, "leave it alone (--exclude), or round its widths (--round-to)"
        )
    if lost >= 0.05 * s.profile.run_ms and first.node and not parted(pair) and first.is_blocked == now.is_blocked:
        taken, expected = sum(k.ms for k in pair.after), pair.expected_ms
        text = f"{now.operator} {quoted(now.name)} takes {taken:.3g} ms, {expected:.3g} by what was removed of it"
        advice = {
            "memory": "it is held up by memory; nothing to gain from fewer MACs",
            "small": "it is too small to get faster; remove it (--depth) or run more samples at once (--batch)",
        }.get(now.bound, "measure neighbouring widths (--round-to 16, 32), or let other layers give more")
        yield s.finding("disappointment", now.name, lost, text, advice)


def _faster(before: Subject, after: Subject) -> Iterator[Finding]:
    a, b = before.profile, after.profile
    if not a.macs:
        return
    kept, time = b.macs / a.macs, b.run_ms / a.run_ms
    text = f"{kept:.0%} of the MACs are left and {time:.0%} of the time ({a.run_ms:.3g} -> {b.run_ms:.3g} ms)"
    advice = (
        "as much was gained as was removed"
        if time <= kept * 1.05
        else "the table of both says where the difference lies"
    )
    yield after.finding("speedup", "", max(0.0, b.run_ms - kept * a.run_ms), text, advice)


def merged(own: Sequence[Finding], between: Sequence[Finding]) -> list[Finding]:
    """Both lists, the speedup first; of what both say of one node, the sentence that knows its width."""
    said = {f.where for f in own if f.kind in ("width", "grouped")}
    kept = [f for f in between if not (f.kind in ("unblocked", "disappointment") and f.where in said)]
    first = {"speedup": 0, "bound": 1}
    return sorted((*own, *kept), key=lambda f: (first.get(f.kind, 2), -f.ms))
