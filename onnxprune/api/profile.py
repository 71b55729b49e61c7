"""Where the time of a model goes, and why a pruned one is not faster: load -> analyse -> record in turn -> map -> compare -> advise."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of, check_globs, feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.api.replay import read_plan
from onnxprune.choose.field import several
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import ProfileOptions
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Plan
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.interface import cut_feeds, interface_of, marked, resized
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.report.drawing import graph_of
from onnxprune.report.findings import CPU, Subject, findings_between, findings_of, merged
from onnxprune.report.profile import Compared, ProfileReport
from onnxprune.report.profiling import Layers, Machine, profile_of
from onnxprune.report.renderer import renderer_for
from onnxprune.report.side_by_side import compared, pairs_of
from onnxprune.version import __version__


def profile(
    model: Source,
    pruned: Source | None = None,
    *,
    plan: str | PathLike[str] | Plan | None = None,
    report: str | PathLike[str] | None = None,
    progress: Progress = silent,
    command: Sequence[str] = (),
    **options: Any,
) -> ProfileReport:
    """Where a run's time goes, by node, operator and group; what pruning could save at most; what to do about the rest.

    model: path or ModelProto. pruned: what was made of it; both run in turn on the same inputs, and stand beside each other by nodes.
    plan: the one that made `pruned`, which says what was removed on purpose. report: where to write it (.html, .md or .json).
    command: the words of the command line that asks for it, for the report.
    options: the fields of `ProfileOptions` (runs, seconds), of `Place` (provider, provider_options, threads, batch, warmup) and those of
    `Options` that say how to look: input_shapes, data, include_inexact, include, exclude, free, custom_ops, seed. Raises `BadInputError`.
    """
    how, place, settings = several((ProfileOptions, Place, Options), options, "profile")
    runner = place.made()
    assert isinstance(runner, runtime.OnnxRuntime)
    if plan is not None and pruned is None:
        raise BadInputError("--plan says what was removed from a model; give the pruned model too.")
    check_outputs({"--report": report}, (model, pruned, plan))
    renderer = None if report is None else renderer_for(report)
    runtime.load_custom_ops(settings.custom_ops)
    clock = Clock(progress)
    clock("load")
    sources = [model] if pruned is None else [model, pruned]
    names = [
        str(m) if isinstance(m, str | PathLike) else what
        for m, what in zip(sources, ("the model", "the pruned model"), strict=False)
    ]
    first, *others = (load(m) for m in sources)
    removed = _removed(plan, first)
    clock("analyse")
    layers = [Layers(_analysed(first, settings.scope, place.batch, clock))]
    feeds = layers[0].analysis.feeds
    runs = [first, *(m.beside(marked(m.proto, resized(first.proto, m.proto))) for m in others)]
    for other, sized in zip(others, runs[1:], strict=True):
        own = tuple(cut_feeds(interface_of(sized.proto), f) for f in feeds)
        layers.append(Layers(analysis_of(other, Scope(include_inexact=settings.include_inexact), (own[0], own[1]))))
    clock("profile")
    recordings = runtime.record(
        runs, feeds[0], runner, names, how.runs, place.warmup, seconds=how.seconds, share=clock.share
    )
    clock.stop()
    made = reported(names, recordings, layers, runner, removed)
    made = replace(made, command=tuple(command), graph=graph_of(layers[0].analysis))
    if report is not None and renderer is not None:
        with staged({Path(report): renderer.render(made)}):
            pass
    return made


def _analysed(model: LoadedModel, scope: Scope, batch: int | None, clock: Clock) -> Analysis:
    """Observed at the sizes that it runs with. batch: samples of a run, where they are given."""
    if batch is None:
        return analysis_of(model, scope, share=clock.share)
    runtime.check_batch(model.proto, batch)
    check_globs(model, scope)
    one, two = feeds_of(model, scope)
    fed = runtime.with_batch(model.proto, one, batch), runtime.with_batch(model.proto, two, batch + 1)
    return analysis_of(model, scope, fed, clock.share)


def reported(
    names: Sequence[str],
    recordings: Sequence[runtime.Recording],
    layers: Sequence[Layers],
    runner: runtime.OnnxRuntime,
    removed: Set[str] = frozenset(),
) -> ProfileReport:
    """The report of one model, or of two. removed: keys of the nodes that a plan says are gone."""
    block = runtime.block() if runner.execution_provider == CPU else 0
    machine = Machine(runtime.copied_per_ms(), block)
    profiles = [profile_of(*x, machine) for x in zip(names, recordings, layers, strict=True)]
    subjects = [
        Subject(p, own, block, runner.threads, runner.execution_provider)
        for p, own in zip(profiles, layers, strict=True)
    ]
    findings = findings_of(subjects[-1])
    rows: tuple[Compared, ...] = ()
    if len(profiles) == 2:
        before, after = profiles
        pairs = pairs_of(before, after, removed)
        rows = compared(pairs, before, after)
        findings = merged(findings, findings_between(subjects[0], subjects[1], pairs))
    return ProfileReport(
        onnxprune=__version__,
        engine=runner.name,
        threads=runner.threads,
        inputs={k: tuple(v.shape) for k, v in layers[0].analysis.feeds[0].items()},
        block=block,
        gb_per_s=machine.copied / 1e6,
        launch_ms=recordings[0].launch_ms,
        model=profiles[0],
        pruned=profiles[1] if len(profiles) == 2 else None,
        compared=rows,
        findings=tuple(findings),
    )


def _removed(plan: str | PathLike[str] | Plan | None, original: LoadedModel) -> frozenset[str]:
    """Keys of the nodes that a plan removed. Raises `BadInputError` where it is of another model."""
    if plan is None:
        return frozenset()
    made = read_plan(plan)
    if made.model_sha256 != original.sha256:
        raise BadInputError(
            "The plan belongs to another model than the first one; give the model that it was made for."
        )
    return frozenset(made.nodes_removed)
