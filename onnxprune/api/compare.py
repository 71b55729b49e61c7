"""Models side by side: load -> see that they fit -> sizes and costs -> outputs on the same inputs -> times in turn -> report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.answers import answers, other_classes
from onnxprune.calibrate.damage import NAMED, Outputs, divergence
from onnxprune.calibrate.judging import Judged, judged_by
from onnxprune.calibrate.metric import scorer
from onnxprune.choose.channels import samples_for
from onnxprune.choose.costs import CostModel
from onnxprune.choose.field import several
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import CompareOptions
from onnxprune.clock import Clock, Progress, silent
from onnxprune.errors import BadInputError, OnnxPruneError
from onnxprune.groups.analysis import Analysis
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.interface import marked, resized
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.report.comparison import Compared, Comparison
from onnxprune.report.renderer import renderer_for


def compare(
    models: Sequence[Source],
    *,
    report: str | PathLike[str] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Comparison:
    """Sizes, costs, times and outputs of models, against the first.

    models: paths or ModelProtos, from wherever, with inputs and outputs of the same names. report: a file to write.
    options: the fields of `CompareOptions`, of `Place`, and those of `Options` that go with it.
    Raises `BadInputError` where there are less than two, or one does not fit the first.
    """
    how, settings, place = several((CompareOptions, Options, Place), options, "compare")
    sources: list[Source] = list(models) if isinstance(models, list | tuple) else [models]
    if len(sources) < 2:
        raise BadInputError("There is nothing to compare with; give two models at least.")
    own = settings.metric if settings.metric not in NAMED else None
    if own is None and settings.metric != "kl":
        raise BadInputError(
            "compare shows divergence and agreement anyway; --metric takes a score of yours, MODULE:FUNCTION."
        )
    check_outputs({"--report": report}, (*sources, settings.data))
    renderer = None if report is None else renderer_for(report)
    runtime.load_custom_ops(settings.custom_ops)
    runner = place.made()
    clock = Clock(progress)
    clock("load")
    loaded = [load(source) for source in sources]
    names = [str(s) if isinstance(s, str | PathLike) else f"model {k}" for k, s in enumerate(sources, 1)]
    for name, other in zip(names[1:], loaded[1:], strict=True):
        _check(loaded[0], other, names[0], name)
    clock("analyse")
    first = analysis_of(loaded[0], settings.scope, share=clock.share)
    analyses = [first, *(_analysed(model, settings) for model in loaded[1:])]
    clock("compare")
    samples = samples_for(first, settings, CostModel(first), False)
    fitted = [m.beside(marked(m.proto, resized(loaded[0].proto, m.proto))) for m in loaded]
    judged = judged_by(loaded[0], _fits(analyses), settings.judge)
    own_feeds = [samples.feeds[run] for run in samples.own]
    found = answers(judged, list(zip(names, fitted, strict=True)), own_feeds, clock.share)
    clock("benchmark")
    times = None
    if how.benchmark:
        feeds = runtime.with_batch(loaded[0].proto, first.feeds[0], place.batch)
        times = runtime.latency(
            runner, fitted, feeds, repeats=how.runs, warmup=place.warmup, seconds=how.seconds, names=names
        )
    clock.stop()
    rows = [
        _row(name, model, analysis, judged, (found[0], outputs))
        for name, model, analysis, outputs in zip(names, loaded, analyses, found, strict=True)
    ]
    if own is not None:
        score = scorer(own, samples, judged, samples.own)
        rows = [replace(row, score=score([o[k] for k in samples.own])) for row, o in zip(rows, found, strict=True)]
    if times is not None:
        rows = [_timed(row, times[0], own_times, k) for k, (row, own_times) in enumerate(zip(rows, times, strict=True))]
    made = Comparison(tuple(rows), samples.count, settings.data is None, runner.name if how.benchmark else None, own)
    with staged({} if report is None or renderer is None else {Path(report): renderer.render(made)}):
        pass
    return made


def _check(first: LoadedModel, other: LoadedModel, name: str, theirs: str) -> None:
    """Raise `BadInputError` where a model cannot be fed what the first is fed, or gives other outputs."""
    sides = (
        ("inputs", [[v.name for v in runtime.graph_inputs(m.proto)] for m in (first, other)]),
        ("outputs", [[o.name for o in m.proto.graph.output] for m in (first, other)]),
    )
    for what, (wanted, found) in sides:
        if {*wanted} != {*found}:
            raise BadInputError(
                f"{theirs} has the {what} {', '.join(found)}, and {name} has {', '.join(wanted)}; only models whose inputs and outputs "
                "have the same names can be compared."
            )


def _analysed(model: LoadedModel, settings: Options) -> Analysis | str:
    """The analysis of a model, for its costs; why there is none, where it fails."""
    try:
        return analysis_of(model, settings.scope)
    except OnnxPruneError as problem:
        return str(problem)


def _fits(analyses: Sequence[Analysis | str]) -> Any:
    """Is a tensor in all models, and of one size?"""
    known = [a.observation.shapes for a in analyses if isinstance(a, Analysis)]

    def fits(name: str) -> bool:
        return len(known) == len(analyses) and len({shapes.get(name) for shapes in known}) == 1 and name in known[0]

    return fits


def _row(
    name: str, model: LoadedModel, analysis: Analysis | str, judged: Judged, pair: tuple[Outputs, Outputs]
) -> Compared:
    reference, outputs = pair
    costs, note = (
        (CostModel(analysis), "") if isinstance(analysis, Analysis) else (None, f"its cost is unknown: {analysis}")
    )
    sizes = [[x.shape for x in row] for row in judged.of_outputs(reference)]
    if sizes != [[x.shape for x in row] for row in judged.of_outputs(outputs)]:
        note = "; ".join(filter(None, (note, "its outputs have other sizes than the first model's")))
    others = other_classes(judged, reference, outputs)
    return Compared(
        model=name,
        bytes=model.size_bytes,
        macs=None if costs is None else costs.macs(),
        params=None if costs is None else costs.params(),
        divergence=judged.by_tensors(divergence)(reference, outputs),
        agreement=None if others is None else 1 - others,
        note=note,
    )


def _timed(row: Compared, first: runtime.Times, own: runtime.Times, number: int) -> Compared:
    ratio = runtime.speedup(first.rounds, own.rounds)
    verdict = ratio.verdict if number else "equal"
    interval = (round(ratio.low, 4), round(ratio.high, 4))
    return replace(row, median_ms=own.median, speedup=round(ratio.ratio, 4), interval=interval, verdict=verdict)
