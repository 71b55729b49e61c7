"""What a person should know before a pruned model is used: sentences, each with what to do about it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune import ops
from onnxprune.analyse.copies import near_copies
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.scale import doubts
from onnxprune.analyse.scope import Scope
from onnxprune.analyse.sources import GROUPS
from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import FLOOR
from onnxprune.choose.trials import TOLERANCE
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Feeds
from onnxprune.model.bodies import OPSETS, body_of, can_watch
from onnxprune.model.branches import subgraphs
from onnxprune.model.graph import name_of
from onnxprune.model.routing import key_of
from onnxprune.model.save import stored_bytes, tensors
from onnxprune.model.tensors import is_external, read
from onnxprune.ops import failures, is_quantized
from onnxprune.proof.unsigned import saturates_here
from onnxprune.repair.fits import Repair
from onnxprune.report.outcome import Outcome
from onnxprune.report.values import Tuned
from onnxprune.runtime import batch_axes, graph_inputs, speedup
from onnxprune.words import counted, were

NO_DATA = "no inputs were given, so made-up ones were used; judge the result on your own data, or give some with --data FILE.npz"
BELOW = (
    "{:.2f} of the MACs were kept without data: at 0.5 an ImageNet classifier kept 2 % of its answers so, whatever divergence is reported; "
    "give a few dozen inputs with --data, or keep 0.8"
)
SATURATES = (
    "this processor has no VNNI, so that sums of products with the model's signed 8-bit weights saturate: the original and the pruned "
    "model compute something else here than elsewhere (the proof does not, as it takes unsigned weights in their place); for such "
    "processors quantize with unsigned or 7-bit weights (reduce_range)"
)
NEAR = 0.05  # how far below the target rounding may end
BROAD = 128  # whole numbers up to here and above are taken for unscaled ones
FAR = 1.0  # divergence from which on a result is called far from the original
MANY = 0.1  # share of held-out samples that may be near copies
SPARSE = 0.3  # share of zeros from which on filling them is worth a word
NAMED = 3  # inputs or layers in one line
SMALL = 1 << 28  # bytes of a model whose zeros are counted


def missed(outcome: Outcome) -> list[str]:
    """Is the finished model certainly slower than was asked for, by more than is tolerated?"""
    if outcome.pace is None or outcome.times is None or outcome.budget is None or not outcome.budget.is_time:
        return []
    found = speedup(*(t.rounds for t in outcome.times.times))
    if found.high >= (1 - TOLERANCE) * outcome.pace.asked:
        return []
    return [
        f"the finished model is {found.ratio:.2f} times as fast ({found.low:.2f} to {found.high:.2f}), not {outcome.pace.asked:g} as was "
        "asked for and as it was on the way; time it again where nothing else runs (onnxprune bench)"
    ]


def warnings(
    analysis: Analysis,
    pruned: onnx.ModelProto,
    calibration: Calibration | None,
    repair: Repair | None,
    kept: float = 1.0,
    tuning: Tuned | None = None,
    asked: bool = False,
    scope: Scope | None = None,
) -> list[str]:
    """analysis: of the original. repair, tuning: None where none was asked for. kept: share of the MACs.

    asked: the user said how many samples to use. scope: with which inputs the model was observed.
    """
    found = [BELOW.format(kept)] if calibration is not None and calibration.made_up and kept < FLOOR - NEAR else []
    found += [f"{text}; what the node touches is kept" for text in analysis.crashed]
    found += [text for text in failures.seen() if text not in analysis.crashed]
    if calibration is not None:
        found += _of_samples(calibration, repair, asked)
        found += (
            [] if calibration.made_up else of_scale(analysis, calibration.samples.feeds[: calibration.samples.given])
        )
    if calibration is not None and repair is not None:
        found += [*_of_branches(analysis, calibration), *_of_loops(analysis, calibration)]
    if scope is not None and scope.data is None:
        found += _of_sizes(analysis, scope.input_shapes)
    if saturates_here(analysis.model.proto):
        found.append(SATURATES)
    if repair is not None:
        if not repair.fits and is_quantized(analysis.model.proto.graph):
            found.append("no layer could be fitted, as the weights are integer codes; prune before quantizing")
        if repair.unpaired:
            names = ", ".join(f"'{x}'" for x in repair.unpaired[:NAMED])
            found.append(
                f"{were(len(repair.unpaired), 'layer')} not fitted ({names}): values decide which rows they see, and in the pruned model "
                "these are others"
            )
        found += _of_distance(repair, tuning)
        if repair.changed:
            before, after = _zeros(analysis.model.proto), _zeros(pruned)
            if before > SPARSE and after < before / 2:
                found.append(
                    f"{before:.0%} of the weights were zero, {after:.0%} are now, as the repair fills them; sparsify after pruning, "
                    "or use --recover bias"
                )
    before, after = analysis.model.size_bytes, stored_bytes(pruned)
    if after > before:
        found.append(f"the file grows from {before:,} to {after:,} bytes")
    return found


def _of_sizes(analysis: Analysis, given: Container[str]) -> Iterator[str]:
    """Of made-up inputs. given: inputs whose shape the user gave."""
    inputs, feeds = graph_inputs(analysis.model.proto), analysis.feeds[0]
    batch = batch_axes(inputs)
    shapes = []
    for value in inputs:
        tensor, rows = value.type.tensor_type, batch.get(value.name, [])
        sizes = enumerate(tensor.shape.dim)
        is_open = not tensor.HasField("shape") or any(not d.HasField("dim_value") for k, d in sizes if k not in rows)
        if is_open and value.type.HasField("tensor_type") and value.name not in given:
            shapes.append(f"'{value.name}' {'x'.join(map(str, feeds[value.name].shape))}")
    if shapes:
        yield (
            f"the model leaves sizes of its inputs open, so they were made up ({', '.join(shapes[:NAMED])}), and multiply-accumulates and "
            "times are of these; say yours with --input-shape"
        )


def _of_distance(repair: Repair, tuning: Tuned | None) -> Iterator[str]:
    far, remedy = (repair.after, "fine-tune it") if tuning is None else (tuning.loss.after, "tune it for longer")
    if far is not None and not far <= FAR:
        yield f"the result is far from the original (divergence {far:.2g}); keep more, or {remedy}"


def _of_samples(calibration: Calibration, repair: Repair | None, asked: bool) -> Iterator[str]:
    samples = calibration.samples
    if not calibration.judged.tensors:
        yield (
            "no output says how good the model is (none holds floats of a size that follows from the inputs' sizes), so importance alone "
            "decided; name a tensor to judge it by with --judge"
        )
    if calibration.made_up:
        yield NO_DATA
        return
    if repair is not None and not any(samples.held):
        why = (
            f"all inputs are of one {samples.held_by}"
            if samples.sources
            else "nothing could be held out of so few inputs"
        )
        yield f"{why}: the divergence is that of the samples that were fitted; give more"
    elif repair is not None and _are_alike(samples):
        yield "the inputs are constant or all alike, so nothing is known of how others fare; give a few dozen different ones"
    elif repair is not None and (copies := near_copies(samples))[0] > MANY * copies[1]:
        yield (
            f"{copies[0]} of {copies[1]} held-out samples are near copies of fitted ones, so the held-out figure flatters; say which "
            f"belong together with an array '{GROUPS}', one label per sample"
        )
    if samples.left_out and not asked:
        whole = samples.count + samples.left_out
        yield (
            f"{samples.count:,} of {whole:,} samples were used, evenly spread, as all would take long or much room; "
            f"--samples {whole} uses all"
        )


def of_scale(analysis: Analysis, feeds: Sequence[Feeds]) -> list[str]:
    """Inputs of the user's whose scale is not the model's; where the model does not tell, those of floats that look like bytes."""
    told = doubts(analysis, feeds)
    return [said for said in told.values() if said] + [
        f"'{name}' holds whole numbers of up to {BROAD} and more; if the model wants them scaled, scale them first"
        for name in _unscaled(feeds)
        if name not in told
    ]


def _of_branches(analysis: Analysis, calibration: Calibration) -> Iterator[str]:
    """Branches with layers that no sample came by."""
    nodes = {n.key: n for n in analysis.view.graph.walk()}
    for key, branch in calibration.routing.untaken():
        graph = nodes[key].subgraphs.get(branch) if key in nodes else None
        if graph is None:
            continue
        within = {n.key for n in graph.walk()}
        weights = {x for n in graph.walk() if ops.rule_for(n.op, n.domain).linear for x in n.inputs}
        weights &= analysis.view.constants.keys()
        if any({node for node, _ in analysis.view_uses(x)} <= within for x in weights):
            yield (
                f"branch '{branch.removesuffix('_branch')}' of {nodes[key]} was taken by none of the calibration inputs; its own weights "
                "are cut but not repaired"
            )


def _of_loops(analysis: Analysis, calibration: Calibration) -> Iterator[str]:
    """Bodies of loops, and of what runs a decoder by itself, with layers that were not calibrated."""
    known = {x.key for x in calibration.layers}
    flat = calibration.flat
    loops = {key_of(n): n for n in flat.graph.node if n.op_type != "If" and any(True for _ in subgraphs(n))}
    for node in analysis.view.graph.walk():
        if node.key not in loops:
            continue
        inside = [
            n
            for body in node.subgraphs.values()
            for n in body.walk()
            if n.key not in known
            and ops.rule_for(n.op, n.domain).linear
            and analysis.view.constants.keys() & set(n.inputs)
        ]
        if inside:
            if can_watch(flat, loops[node.key]):
                why = "they lie in another loop or branch there, or their weights are computed"
            elif body_of(loops[node.key]) is not None:
                why = f"ONNX Runtime shows the steps of a {node.op} from opset {OPSETS[node.op]} on"
            else:
                why = "nothing shows what it feeds them"
            names = ", ".join(f"'{name_of(n.key)}'" for n in inside[:3])
            verb = "was" if len(inside) == 1 else "were"
            yield (
                f"{counted(len(inside), 'layer')} inside {node} {verb} not calibrated ({names}), as {why}; cut but not repaired"
            )


def _are_alike(samples: Samples) -> bool:
    """Is every sample of the user's the same, or without any variation?"""
    rows = [
        np.asarray(a).reshape(a.shape[0] if a.ndim else 1, -1)
        for f in samples.feeds[: samples.given]
        for a in f.values()
    ]
    if all(r.size and bool((r == r[:, :1]).all()) for r in rows):
        return True
    first = samples.feeds[0]
    return samples.count > 1 and all(
        f[n].shape[1:] == first[n].shape[1:] and bool((f[n] == (first[n][:1] if first[n].ndim else first[n])).all())
        for f in samples.feeds[: samples.given]
        for n in first
    )


def _unscaled(given: Sequence[Feeds]) -> list[str]:
    """Inputs of floats that look like bytes."""
    return [
        n
        for n, a in given[0].items()
        if a.dtype.kind == "f"
        and a.ndim > 2
        and all(bool((f[n] == np.rint(f[n])).all()) for f in given)
        and max(float(f[n].max(initial=0)) for f in given) >= BROAD
    ]


def _zeros(model: onnx.ModelProto) -> float:
    """Share of zeros among stored floats of two axes and more; sparse ones count what they leave out."""
    zeros = total = 0
    if stored_bytes(model) > SMALL:
        return 0.0
    for tensor in tensors(model.graph):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and not is_external(tensor):
            values = read(tensor, None)
            zeros, total = zeros + int((values == 0).sum()), total + values.size
    for sparse in model.graph.sparse_initializer:
        size = int(np.prod(sparse.dims))
        zeros, total = zeros + size - int(np.prod(sparse.values.dims)), total + size
    return zeros / max(total, 1)
