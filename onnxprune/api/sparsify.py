"""Unstructured and N:M sparsity: load -> find weights -> calibrate -> decide -> write -> (remove what died) -> store -> measure.

sparsify("model.onnx", threshold=0.2, output="sparse.onnx")     # every weight of smaller magnitude becomes zero
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.answers import answers, other_classes
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import Outputs, divergence
from onnxprune.calibrate.judging import Judged, judged_by
from onnxprune.choose.channels import keeps_size, samples_for
from onnxprune.choose.costs import CostModel
from onnxprune.choose.field import several
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import SparsifyOptions
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Pair, plan_groups
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError, NothingPrunableError, VerificationError
from onnxprune.groups.analysis import Analysis
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.graph import name_of
from onnxprune.model.load import Source, file_of, load
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.patch import with_constants
from onnxprune.model.save import save_result, stored_bytes
from onnxprune.proof.compare import error, tolerance_of
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.proof.interface import check_interface
from onnxprune.proof.prove import SCALES, check_well_formed, proved
from onnxprune.proof.unsigned import exact_products
from onnxprune.report.drawing import graph_of
from onnxprune.report.renderer import renderer_for
from onnxprune.report.sparsity import (
    Dead,
    DeadGroup,
    Difference,
    Sizes,
    SparseLayer,
    SparsityReport,
    runtimes_for,
    zeros_of,
)
from onnxprune.report.values import Latency, decided, not_judged
from onnxprune.sparsity.dead import dead_units
from onnxprune.sparsity.decide import Sparse
from onnxprune.sparsity.decide import sparsify as decide
from onnxprune.sparsity.find import find_weights
from onnxprune.sparsity.store import stored
from onnxprune.sparsity.targets import Pattern, Target, Threshold, target_of
from onnxprune.sparsity.weights import Left, SparseWeight, with_values

MADE_UP = 16  # samples to measure the difference on where the user gives none
ZIPPED = 1 << 28  # larger models are not compressed for the report


@dataclass(frozen=True)
class SparsifyResult:
    """The sparse model and what was measured."""

    model: onnx.ModelProto
    report: SparsityReport
    source: LoadedModel

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically (with external data, if the original had it or it is too large)."""
        save_result(self.model, path, self.source)


def sparsify(
    model: Source,
    *,
    output: str | PathLike[str] | None = None,
    report: str | PathLike[str] | None = None,
    progress: Progress = silent,
    command: Sequence[str] = (),
    **options: Any,
) -> SparsifyResult:
    """Set weights to zero: those below `threshold`, a share (`sparsity`) of each layer or of all, or all outside an N:M `pattern`.

    model: path or ModelProto (left alone). output, report: files to write; nothing is written unless everything succeeds. command: the
    words of the command line, for the report. options: the fields of `SparsifyOptions`, `Options` (include, data, …) and `Place`.
    Raises `BadInputError`, `NothingPrunableError`, `VerificationError`.
    """
    wanted, settings, place = several((SparsifyOptions, Options, Place), options, "sparsify")
    target = target_of(wanted.threshold, wanted.sparsity, wanted.pattern, wanted.scope)
    chosen = _criterion(wanted.criterion, target, settings)
    files = {"-o": output, "--report": report}
    check_outputs(files, (model, settings.data))
    renderer = None if report is None else renderer_for(report)
    clock = Clock(progress)
    runtime.load_custom_ops(settings.custom_ops)
    watch = Stopwatch(place.made(), place.batch, place.warmup)
    clock("load")
    loaded = load(model)
    check_outputs(files, loaded.data_files)
    clock("analyse")
    analysis = analysis_of(loaded, settings.scope)
    if settings.benchmark:
        watch.check(loaded, analysis.feeds[0])
    weights, left = _select(analysis, target, settings)
    clock("calibrate")
    judged = judged_by(loaded, keeps_size(analysis), settings.judge, leads=True)
    samples, calibration = _calibrated(analysis, settings, judged, chosen, clock)
    clock("sparsify")
    sparse = decide(analysis, weights, target, chosen, calibration, settings.seed, clock.share)
    final, dead = _written(analysis, sparse), None
    if wanted.then_prune:
        clock("prune")
        final, dead = _without_dead(loaded, final, settings)
    clock("store")
    final, as_sparse = stored(final, set(sparse.values), wanted.store, _Loads(analysis, final))
    clock("measure")
    difference = _difference(loaded, final, samples, judged, settings.data is None, calibration)
    models = (analysis.model, analysis.model.beside(final))
    latency_ms = Latency.of(watch.timed(models, analysis.feeds[0])) if settings.benchmark else None
    clock.stop()
    layers = tuple(_layer(analysis, w, sparse, w.tensor in as_sparse) for w in weights)
    made = SparsityReport(
        target=str(target),
        criterion=chosen,
        zeros=zeros_of(layers),
        layers=layers,
        left_alone=tuple(left),
        difference=difference,
        bytes=_sizes(loaded, final),
        runtimes=runtimes_for(target),
        seconds={k: round(v, 3) for k, v in clock.seconds.items()},
        pruned=dead,
        latency_ms=latency_ms,
        command=tuple(command),
        model=file_of(model),
        graph=graph_of(analysis),
    )
    result = SparsifyResult(final, made, loaded)
    texts = {Path(report): renderer.render(made)} if report is not None and renderer is not None else {}
    with staged(texts):
        if output is not None:
            result.save(output)
    return result


# ---------------------------------------------------------------- what was asked for


def _criterion(criterion: str | None, target: Target, settings: Options) -> str:
    if criterion is None:
        return "magnitude" if settings.data is None or isinstance(target, Threshold) else "obs"
    if criterion != "magnitude" and settings.data is None:
        raise BadInputError(f"--criterion {criterion} looks at the layers' inputs; give some with --data.")
    if criterion == "wanda" and isinstance(target, Threshold):
        raise BadInputError("--threshold compares magnitudes; use --criterion wanda with --sparsity or --pattern.")
    return criterion


def _select(analysis: Analysis, target: Target, settings: Options) -> tuple[list[SparseWeight], list[Left]]:
    """Weights that the target and the user's patterns allow, and those that stay, with reasons."""
    found, left = find_weights(analysis)
    nodes = {n.key: n.name for n in analysis.view.graph.walk()}
    kept = []
    for weight in found:
        names = {weight.tensor, name_of(weight.tensor)} | {x for k, _ in weight.uses for x in (k, nodes.get(k, ""))}
        if settings.include and not _matches(names, settings.include):
            left.append(Left(weight.tensor, weight.node, "is not named by --include"))
        elif _matches(names, settings.exclude):
            left.append(Left(weight.tensor, weight.node, "is named by --exclude"))
        elif isinstance(target, Pattern) and weight.run < target.of:
            inputs = f"{weight.run} inputs" if weight.run > 1 else "1 input"
            left.append(Left(weight.tensor, weight.node, f"has {inputs} along {weight.axis}, fewer than {target.of}"))
        else:
            kept.append(weight)
    if not kept:
        reasons = (
            "; ".join(f"{x.tensor} {x.reason}" for x in left[:3]) or "no layer multiplies by a stored float weight"
        )
        raise NothingPrunableError(f"There is no weight to set to zero: {reasons}.")
    return kept, left


def _matches(names: set[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names if name for glob in globs)


# ---------------------------------------------------------------- the steps, once each


def _calibrated(
    analysis: Analysis, settings: Options, judged: Judged, criterion: str, clock: Clock
) -> tuple[Samples, Calibration | None]:
    """Inputs to measure on, and what the layers see of them where the criterion asks for that."""
    is_obs = settings.data is not None and criterion == "obs"
    samples = samples_for(analysis, settings, CostModel(analysis), is_obs, MADE_UP)
    if criterion == "magnitude":
        return samples, None
    return samples, calibrate(analysis, samples, judged, settings.seed, False, clock.share)


def _written(analysis: Analysis, sparse: Sparse) -> onnx.ModelProto:
    proto = with_values(analysis.model, analysis.view.opsets, sparse.values)
    return with_constants(proto, sparse.biases) if sparse.biases else proto


def _without_dead(loaded: LoadedModel, made: onnx.ModelProto, settings: Options) -> tuple[onnx.ModelProto, Dead]:
    """The sparse model without the units that nobody misses, proved twice: against its masked self and against itself."""
    model = replace(loaded, proto=made, path=None)
    analysis = analysis_of(model, replace(settings.scope, include=(), exclude=()))
    gone = dead_units(analysis)
    if not gone.any():
        return made, Dead(0, (), 0.0, None, None)
    cut = rewrite(analysis, gone)
    proved(analysis, gone, analysis.model.beside(cut), settings.seed)
    apart = _apart(analysis, made, cut, settings.seed)
    groups = tuple(DeadGroup(g.origin, g.kind, g.units, g.removed) for g in plan_groups(analysis, gone))
    costs = CostModel(analysis)
    macs, params = Pair(costs.macs(), costs.macs(gone)), Pair(costs.params(), costs.params(gone))
    return cut, Dead(sum(g.removed for g in groups), groups, apart, macs, params)


def _apart(analysis: Analysis, made: onnx.ModelProto, cut: onnx.ModelProto, seed: int) -> float:
    """The largest difference between the outputs of both; raises where it is more than float noise."""
    both = [runtime.Session(analysis.model.beside(exact_products(p)), what="the sparse model") for p in (made, cut)]
    pairs = [analysis.feeds, *(runtime.rescaled(analysis.feeds, seed, scale) for scale in SCALES)]
    apart = max(error(both[0].run(feeds), both[1].run(feeds)) for pair in pairs for feeds in pair)
    if not apart <= tolerance_of(made, 0.0):
        raise VerificationError(
            f"Removing units that are zero or unread changed the outputs by {apart:.1e} of their scale; please report this model."
        )
    return apart


class _Loads:
    """Does ONNX Runtime load a model, and does it compute what the dense one does?"""

    def __init__(self, analysis: Analysis, dense: onnx.ModelProto) -> None:
        self.original = analysis.model
        self.feeds = analysis.feeds[0]
        self.dense = dense

    def __call__(self, proto: onnx.ModelProto) -> bool:
        try:
            wanted = runtime.Session(self.original.beside(self.dense), optimized=True).run(self.feeds)
            found = runtime.Session(self.original.beside(proto), optimized=True).run(self.feeds)
        except BadInputError:
            return False
        return error(wanted, found) == 0.0


# ---------------------------------------------------------------- what it is worth


def _difference(
    loaded: LoadedModel,
    final: onnx.ModelProto,
    samples: Samples,
    judged: Judged,
    made_up: bool,
    calibration: Calibration | None,
) -> Difference:
    """How far what the model is judged by is from the original's, on samples that no weight was fitted to where there are such."""
    check_interface(loaded.proto, final)
    check_well_formed(loaded, loaded.beside(final))
    held = [k for k in range(samples.given) if samples.held[k]] if calibration is not None else []
    chosen = held or list(range(samples.given))
    models: list[tuple[str, Model]] = [("the original", loaded), ("the sparse model", loaded.beside(final))]
    wanted, found = answers(judged, models, [samples.feeds[k] for k in chosen])
    return Difference(
        error=judged.by_tensors(_worst)(wanted, found),
        divergence=judged.by_tensors(divergence)(wanted, found),
        top1=other_classes(judged, wanted, found),
        samples=sum(samples.sizes[k] for k in chosen),
        held_out=bool(held),
        made_up=made_up,
        judged_by=judged.tensors,
        not_judged=not_judged(judged),
        decided=decided(judged),
    )


def _worst(wanted: Outputs, found: Outputs) -> float:
    return max(error(a, b) for a, b in zip(wanted, found, strict=True))


def _layer(analysis: Analysis, weight: SparseWeight, sparse: Sparse, is_sparse: bool) -> SparseLayer:
    before = np.asarray(analysis.view.constants[weight.tensor].values)
    after = sparse.values[weight.tensor]
    return SparseLayer(
        tensor=weight.tensor,
        node=weight.node,
        input_axis=weight.axis,
        shape=tuple(weight.shape),
        uses=len(weight.uses) + weight.shared,
        weights=before.size,
        zeros=Pair(before.size - int(np.count_nonzero(before)), after.size - int(np.count_nonzero(after))),
        criterion=sparse.criteria[weight.tensor],
        stored="sparse" if is_sparse else "dense",
    )


def _sizes(loaded: LoadedModel, final: onnx.ModelProto) -> Sizes:
    """Bytes of the files, external data included; and zipped, where that is quick to see."""
    file, compressed = Pair(loaded.size_bytes, stored_bytes(final)), None
    if not loaded.has_external_data and loaded.size_bytes < ZIPPED:
        compressed = Pair(*(len(zlib.compress(p.SerializeToString(), 6)) for p in (loaded.proto, final)))
    return Sizes(file, compressed)
