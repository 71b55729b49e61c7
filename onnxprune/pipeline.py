"""The program on one page: load -> analyse -> calibrate -> score -> allocate -> rewrite -> verify -> compensate -> report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import onnx

from onnxprune import runtime
from onnxprune.core.analysis import Analysis
from onnxprune.core.budget import AUTO, Budget
from onnxprune.core.calibration import Calibration
from onnxprune.core.classes import Bools
from onnxprune.core.damage import METRICS
from onnxprune.core.errors import BadInputError, TargetNotReachableError, VerificationError
from onnxprune.core.files import check_writable, staged
from onnxprune.core.graphio import save_model
from onnxprune.core.model import LoadedModel
from onnxprune.core.observation import Feeds, Observation, batch_of
from onnxprune.core.plan import Plan, make_plan, removed_by
from onnxprune.core.repair import Repair
from onnxprune.core.verdict import Verdict
from onnxprune.core.version import __version__
from onnxprune.ops.cost import CostModel
from onnxprune.stages import feeds as feeding
from onnxprune.stages.allocate import allocate
from onnxprune.stages.analyse import analyse
from onnxprune.stages.calibrate import calibrate
from onnxprune.stages.compensate import compensate
from onnxprune.stages.load import load
from onnxprune.stages.metric import load_score, metric_of
from onnxprune.stages.report import Report, inspection
from onnxprune.stages.rewrite import rewrite
from onnxprune.stages.score import score
from onnxprune.stages.sense import cautious, judge, sense
from onnxprune.stages.surgeon import operate, ranked
from onnxprune.stages.synthesize import synthesize
from onnxprune.stages.verify import (
    check_interface,
    check_refit,
    deviation,
    error,
    is_vacuous,
    masked_keys,
    masked_original,
    tolerance_of,
    verdict,
)

Source: TypeAlias = str | PathLike[str] | onnx.ModelProto
Progress = Callable[[str], None]


SCALES = (0.1, 10.0, 0.01)
BISECTIONS = 6
AUGMENTED = 256  # samples to fit on, the made ones included, ...
AUGMENTED_MACS = 4e11  # ... as long as running them once takes no more than this


def _silent(stage: str) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Options:
    """How to prune. `round_to`: None takes what ONNX Runtime's convolution kernels like, 1 is off.

    recover: `lsq`, `bias` or `none`; None takes `lsq`, but `none` where there is neither `data` nor a target of cost (`--ratio`).
    importance: `obs` needs calibration; None takes it where there is one, else `l2`. samples: at most so many are used.
    """

    importance: str | None = None
    recover: str | None = None
    metric: str = "kl"
    samples: int = 512
    round_to: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_inexact: bool = False
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    data: str | Path | None = None
    seed: int = 0
    check: bool = True
    benchmark: bool = True


@dataclass(frozen=True)
class PruneResult:
    """The pruned model, the plan that made it and what was measured."""

    model: onnx.ModelProto
    plan: Plan
    report: Report
    source: LoadedModel

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically (with external data, if the original had it or it is too large)."""
        save_model(self.model, Path(path), folder=self.source.folder, apart=self.source.has_external_data)


def prune(
    model: Source,
    budget: Budget | None = None,
    *,
    output: str | PathLike[str] | None = None,
    plan: str | PathLike[str] | None = None,
    apply: str | PathLike[str] | Plan | None = None,
    report: str | PathLike[str] | None = None,
    progress: Progress = _silent,
    **options: Any,
) -> PruneResult:
    """Prune a model to a budget, or replay a plan.

    model: path or ModelProto (left alone). budget: `Budget("macs", 0.5)`. output, plan, report: files to write; nothing is
    written unless everything succeeds. apply: a plan to replay instead of deciding. options: the fields of `Options`.
    Raises `BadInputError`, `TargetNotReachableError`, `VerificationError`, `NothingPrunableError`.
    """
    settings = _options(options)
    files = {"-o": output, "--plan": plan, "--report": report}
    inputs = tuple(Path(p) for p in (model, apply) if isinstance(p, str | PathLike))
    for option, path in files.items():
        if path is not None:
            check_writable(Path(path), option, inputs)
            inputs = (*inputs, Path(path))
    if (budget is None) == (apply is None):
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size, --max-drop, or a plan to --apply."
        )
    clock = _Clock(progress)
    clock("load")
    loaded = load(model)
    clock("analyse")
    replay = _read_plan(apply) if apply is not None else None
    if replay is not None:
        settings = _replayed(settings, replay)
    settings = _completed(settings, budget)
    analysis = _analysis(loaded, settings)
    costs = CostModel(analysis)
    clock("calibrate")
    calibration = _calibrated(analysis, settings, clock)
    clock("score")
    if replay is not None:
        removed = removed_by(replay, analysis, f"--apply {apply}" if isinstance(apply, str | PathLike) else "the plan")
    else:
        assert budget is not None
        decide = _decider(analysis, calibration, budget, settings, costs, clock)
        removed = _least(analysis, calibration, budget, decide, settings, clock) if _is_drop(budget) else decide(budget)
    clock("rewrite")
    cut = rewrite(analysis, removed)
    clock("verify")
    found = _verify(analysis, removed, cut, settings.seed) if settings.check else None
    if calibration is not None:
        calibration.moments.clear()  # decided; what they hold is needed elsewhere
    clock("compensate")
    pruned, repair = cut, None
    if calibration is not None and settings.recover != "none":
        pruned, repair = _repaired(analysis, removed, cut, calibration, settings, clock)
    clock("benchmark")
    times = _latency(analysis, pruned) if settings.benchmark else None
    clock.stop()
    refit = repair.changed if repair else ()
    if replay is not None:
        made = replay.repaired(settings.recover or "none", refit)
    else:
        made = make_plan(analysis, removed, _costs(costs, removed), _settings(settings, budget), __version__, refit)
    text = Report.make(
        analysis,
        removed,
        made,
        pruned,
        found,
        times,
        clock.seconds,
        budget,
        settings.include_inexact,
        calibration,
        repair,
    )
    result = PruneResult(pruned, made, text, loaded)
    texts: dict[Path, str] = {}
    if report is not None:
        texts[Path(report)] = text.to_json() if str(report).endswith(".json") else text.to_markdown()
    if plan is not None:
        texts[Path(plan)] = made.to_json()
    with staged(texts):
        if output is not None:
            result.save(output)
    return result


def inspect(model: Source, **options: Any) -> dict[str, Any]:
    """Groups, units, members, MACs and parameters that each group carries, and every pin with its reason and remedy."""
    analysis = _analysis(load(model), _options(options))
    return inspection(analysis, CostModel(analysis))


def verify(
    original: Source, pruned: Source, plan: str | PathLike[str] | Plan, *, data: str | Path | None = None, seed: int = 0
) -> Verdict:
    """Compare a pruned model with the masked original. Raises `VerificationError` where they differ."""
    loaded, other = load(original), load(pruned)
    made = _read_plan(plan)
    settings = _replayed(Options(data=data, seed=seed), made)
    analysis = _analysis(loaded, settings)
    removed = removed_by(made, analysis)
    refit = made.refit
    if not refit:
        return _verify(analysis, removed, other.proto, seed, other)
    cut = rewrite(analysis, removed)
    check_refit(cut, other.proto, refit, (runtime.folder_of(loaded), runtime.folder_of(other)))
    return _verify(analysis, removed, cut, seed)


# ---------------------------------------------------------------- the steps, once each


class _Clock:
    """Seconds per stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since = 0.0

    def __call__(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.progress(stage)

    def share(self, done: float) -> None:
        """Show how much of the stage is done."""
        self.progress(f"{self._stage} {done:.0%}")

    def stop(self) -> None:
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._since
            self._stage = ""


def _options(options: dict[str, Any]) -> Options:
    unknown = set(options) - set(Options.__dataclass_fields__)
    if unknown:
        raise BadInputError(
            f"Unknown option '{sorted(unknown)[0]}'; the options are {', '.join(Options.__dataclass_fields__)}."
        )
    settings = Options(**options)
    if settings.recover not in (None, "none", "bias", "lsq"):
        raise BadInputError(f"Unknown --recover '{settings.recover}'; choose lsq, bias or none.")
    if settings.metric not in METRICS:
        load_score(settings.metric)
    if settings.samples < 1:
        raise BadInputError(f"--samples must be at least 1, not {settings.samples}.")
    if settings.round_to is not None and settings.round_to < 1:
        raise BadInputError(f"--round-to must be 1 (off) or more, not {settings.round_to}.")
    return settings


def _completed(settings: Options, budget: Budget | None) -> Options:
    """The defaults that depend on each other."""
    measured = settings.data is not None or (budget is not None and budget.metric != "ratio")
    recover = settings.recover or ("lsq" if measured else "none")
    importance = settings.importance or ("obs" if recover != "none" else "l2")
    return replace(settings, recover=recover, importance=importance)


def _calibrated(analysis: Analysis, settings: Options, clock: _Clock) -> Calibration | None:
    """Samples of the user's, or made up, and what the original does with them; None where nothing asks for it."""
    if settings.recover == "none" and settings.importance != "obs":
        return None
    inputs = runtime.graph_inputs(analysis.model.proto)
    given = (
        feeding.load_data(settings.data, inputs, labels=True)
        if settings.data
        else synthesize(analysis.feeds[0], inputs, settings.seed)
    )
    macs = CostModel(analysis).macs() / batch_of(analysis.feeds[0])
    wanted = int(min(AUGMENTED, AUGMENTED_MACS / max(macs, 1))) if settings.data else 0
    session = runtime.Session(analysis.model.proto, runtime.folder_of(analysis.model))
    samples = feeding.samples_of(given, inputs, settings.samples, wanted, settings.seed, session.accepts)
    return calibrate(analysis, samples, settings.seed, settings.data is None, clock.share)


def _is_drop(budget: Budget | None) -> bool:
    return budget is not None and budget.metric == "max_drop"


def _decider(
    analysis: Analysis,
    calibration: Calibration | None,
    budget: Budget,
    settings: Options,
    costs: CostModel,
    clock: _Clock,
) -> Callable[[Budget], Bools]:
    """Everything that deciding needs, measured once: what to remove as a function of the target."""
    importance = settings.importance or "l2"
    scores = score(analysis, "l2" if importance == "obs" else importance, settings.seed)
    round_to = AUTO if settings.round_to is None else settings.round_to
    orders = damages = None
    if calibration is not None:
        orders = (
            operate(analysis, calibration, scores, calibration.made_up, clock.share)
            if importance == "obs"
            else ranked(analysis, scores)
        )
        if budget.metric != "ratio":
            clock("sense")
            damages = sense(analysis, calibration, orders, partial(rewrite, analysis), progress=clock.share)
            damages = cautious(damages) if calibration.made_up else damages
    clock("allocate")

    def decide(target: Budget) -> Bools:
        for finer in (round_to, 1):  # rounding is a default, the target is not
            try:
                return allocate(analysis, scores, target, finer, costs, orders, damages)
            except TargetNotReachableError:
                if settings.round_to is not None or finer == 1:
                    raise
        raise AssertionError

    return decide


def _least(
    analysis: Analysis,
    calibration: Calibration | None,
    budget: Budget,
    decide: Callable[[Budget], Bools],
    settings: Options,
    clock: _Clock,
) -> Bools:
    """The smallest share of the MACs whose repaired model loses no more than the budget allows, by bisection."""
    if calibration is None:
        raise BadInputError("--max-drop needs calibration: leave out --recover none, or use --importance obs.")
    metric, chosen = metric_of(settings.metric, calibration)
    folder = runtime.folder_of(analysis.model)
    low, high = 0.0, 1.0
    best: Bools | None = None
    lowest = float("inf")
    clock("search")
    for step in range(BISECTIONS):
        middle = (low + high) / 2
        clock.share(step / BISECTIONS)
        try:
            removed = decide(Budget("macs", middle))
        except TargetNotReachableError:
            low = middle
            continue
        model = rewrite(analysis, removed)
        if settings.recover != "none":
            model = _repaired(analysis, removed, model, calibration, settings, clock)[0]
        drop = judge(calibration, model, folder, metric, chosen)
        lowest = min(lowest, drop)
        if drop <= budget.amount:
            best, high = removed, middle
        else:
            low = middle
    if best is None:
        raise TargetNotReachableError(
            f"--max-drop {budget.amount:g} ({settings.metric}) cannot be kept: the least that was measured is {lowest:.4g}, at "
            f"{high:.2f} of the MACs or below. Allow more, or give more --data."
        )
    return best


def _repaired(
    analysis: Analysis,
    removed: Bools,
    cut: onnx.ModelProto,
    calibration: Calibration,
    settings: Options,
    clock: _Clock,
) -> tuple[onnx.ModelProto, Repair]:
    """The repaired model; the cut one where the repair does not help on held-out samples."""
    found = compensate(analysis, removed, cut, calibration, settings.recover or "lsq", settings.seed, clock.share)
    folder = runtime.folder_of(analysis.model)
    before, after = (judge(calibration, m, folder) for m in (cut, found.model))
    if not after < before:
        return cut, replace(found.repair, changed=(), before=before, after=before)
    return found.model, replace(found.repair, before=before, after=after)


def _read_plan(plan: str | PathLike[str] | Plan) -> Plan:
    if isinstance(plan, Plan):
        return plan
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not text"
        raise BadInputError(f"The plan {plan} cannot be read: {reason}.") from None
    return Plan.from_json(text, f"The plan {plan}")


def _settings(settings: Options, budget: Budget | None) -> dict[str, Any]:
    """What a replay needs to see the same units."""
    return {
        "target": None if budget is None else {budget.metric: budget.amount},
        "importance": settings.importance,
        "recover": settings.recover,
        "samples": settings.samples,
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "include_inexact": settings.include_inexact,
        "input_shapes": {k: list(v) for k, v in settings.input_shapes.items()},
        "seed": settings.seed,
    }


def _replayed(settings: Options, plan: Plan) -> Options:
    stored = plan.document.get("settings", {})
    if not isinstance(stored, dict):
        raise BadInputError("The plan's 'settings' are not an object.")
    try:
        return Options(
            round_to=settings.round_to,
            importance="l2",
            recover=settings.recover or str(stored.get("recover", "none")),
            samples=int(stored.get("samples", settings.samples)),
            include=tuple(str(x) for x in stored.get("include", ())),
            exclude=tuple(str(x) for x in stored.get("exclude", ())),
            include_inexact=bool(stored.get("include_inexact", False)),
            input_shapes=settings.input_shapes
            or {str(k): tuple(int(d) for d in v) for k, v in stored.get("input_shapes", {}).items()},
            data=settings.data,
            seed=settings.seed,
            check=settings.check,
            benchmark=settings.benchmark,
        )
    except (TypeError, ValueError, AttributeError) as problem:
        raise BadInputError(f"The plan's settings cannot be read: {problem}.") from None


def _analysis(loaded: LoadedModel, settings: Options) -> Analysis:
    _globs(loaded, settings)

    def observed(wanted: set[str], typed: set[str]) -> Observation:
        probe = runtime.Probe(loaded, wanted, typed)
        return probe.observation(_feeds(loaded, settings, probe))

    return analyse(
        loaded,
        observed,
        settings.include_inexact,
        exclude=_matcher(settings.exclude),
        include=_matcher(settings.include),
    )


def _feeds(
    loaded: LoadedModel, settings: Options, session: runtime.Session | runtime.Probe | None = None
) -> tuple[Feeds, Feeds]:
    """Two inputs to observe: the user's first samples, completed by random ones that differ in the dynamic dimensions."""
    if settings.data is None:
        return runtime.find_feeds(loaded, settings.input_shapes, settings.seed, session)
    inputs = runtime.graph_inputs(loaded.proto)
    feeds = feeding.load_data(settings.data, inputs)
    first = feeding.take(feeds[0], inputs, 2)
    second = feeding.take(feeds[0], inputs, 3)
    session = session or runtime.Session(loaded.proto, runtime.folder_of(loaded))
    try:
        session.run(first)
    except BadInputError:  # a first axis need not be the batch: take the feed as it is
        first = second = {v.name: feeds[0][v.name] for v in inputs}
        session.run(first)
    try:
        shapes = {k: v.shape for k, v in first.items()}
        return first, runtime.vary(session, loaded.proto, shapes, settings.seed) or second
    except BadInputError:
        return first, second


def _matcher(globs: Sequence[str]) -> Callable[[str], bool] | None:
    if not globs:
        return None
    return lambda name: any(fnmatchcase(name, g) for g in globs)


def _globs(loaded: LoadedModel, settings: Options) -> None:
    """A pattern that names nothing is a typing error."""
    graph = loaded.proto.graph
    names = {n.name for n in graph.node} | {t.name for t in graph.initializer}
    names |= {x for n in graph.node for x in (*n.input, *n.output)}
    names |= {x.name for n in graph.node for a in n.attribute for x in a.g.node}
    names |= {y for n in graph.node for a in n.attribute for x in a.g.node for y in (*x.input, *x.output)}
    for option, globs in (("--include", settings.include), ("--exclude", settings.exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise BadInputError(
                    f"{option} '{glob}' matches no node and no tensor; 'onnxprune inspect' lists names."
                )


def _costs(costs: CostModel, removed: Bools) -> dict[str, list[int]]:
    return {"macs": [costs.macs(), costs.macs(removed)], "params": [costs.params(), costs.params(removed)]}


def _verify(
    analysis: Analysis, removed: Bools, pruned: onnx.ModelProto, seed: int, loaded: LoadedModel | None = None
) -> Verdict:
    """Load, check and compare the pruned model; raise `VerificationError` where anything is off."""
    model = analysis.model
    folder, own = runtime.folder_of(model), runtime.folder_of(loaded) if loaded else runtime.folder_of(model)
    check_interface(model.proto, pruned)
    types = runtime.observe(model, analysis.feeds, set(), masked_keys(analysis, removed)).dtypes
    try:
        reference = runtime.Session(masked_original(analysis, removed, types), folder, what="the masked original")
        plain = runtime.Session(pruned, own, what="the pruned model")
        optimized = _optimized(model, pruned, folder, own)

        def compare(pair: Sequence[Feeds]) -> tuple[float, float]:
            results = [(reference.run(feeds), plain.run(feeds)) for feeds in pair]
            if all(is_vacuous(wanted) for wanted, _ in results):
                raise VerificationError(
                    "The model's outputs are not finite on these inputs, so nothing can be proved; give others with --data."
                )
            return max(error(*r) for r in results), max(deviation(*r) for r in results)

        found, _ = compare(analysis.feeds)
        for feeds in analysis.feeds:
            if optimized is not None:
                optimized.run(feeds)
        if found <= tolerance_of(model.proto, 0.0):
            return verdict(analysis, removed, found)
        # Is it the model's own noise? Then random inputs of another scale may show what these could not.
        sessions = [runtime.Session(model.proto, folder), runtime.Session(model.proto, folder, optimized=True)]
        for pair in (analysis.feeds, *(runtime.rescaled(analysis.feeds, seed, scale) for scale in SCALES)):
            found, apart = compare(pair)
            noise = max(error(*(s.run(feeds) for s in sessions)) for feeds in pair)
            if found <= tolerance_of(model.proto, noise, apart):
                break
    except BadInputError as problem:
        raise VerificationError(f"The comparison does not run: {problem} Please report this model.") from None
    return verdict(analysis, removed, found, noise, apart)


def _optimized(
    model: LoadedModel, pruned: onnx.ModelProto, folder: str | None, own: str | None
) -> runtime.Session | None:
    """The pruned model with ONNX Runtime's optimizations; None where they break the original too."""
    try:
        return runtime.Session(pruned, own, optimized=True, what="the pruned model")
    except BadInputError:
        try:
            runtime.Session(model.proto, folder, optimized=True)
        except BadInputError:
            return None
        raise


def _latency(analysis: Analysis, pruned: onnx.ModelProto) -> list[list[float]]:
    """Milliseconds per run of the original and the pruned model, in turn."""
    folder = runtime.folder_of(analysis.model)
    sessions = [
        runtime.Session(p, folder, optimized=True, threads=1, what="the model") for p in (analysis.model.proto, pruned)
    ]
    return runtime.latency(sessions, analysis.feeds[0])


def bench(
    models: Sequence[Path], shapes: dict[str, tuple[int, ...]], data: str | Path | None, threads: int, runs: int
) -> list[dict[str, Any]]:
    """Latency of several models on the same inputs, in turn; `speedup` is against the first."""
    loaded = [load(m) for m in models]
    feeds = _feeds(loaded[0], Options(input_shapes=shapes, data=data))[0]
    sessions = [
        runtime.Session(m.proto, runtime.folder_of(m), optimized=True, threads=threads, what=str(p))
        for m, p in zip(loaded, models, strict=True)
    ]
    times = runtime.latency(sessions, feeds, repeats=max(3, runs), seconds=120)
    first = median(times[0])
    return [
        {
            "model": str(path),
            "median_ms": median(t),
            "min_ms": min(t),
            "max_ms": max(t),
            "speedup": first / median(t),
            "runs": len(t),
            "threads": threads,
        }
        for path, t in zip(models, times, strict=True)
    ]
