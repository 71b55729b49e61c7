"""Prune during training: small cuts, each repaired and followed by a short distillation, until the target is met.

The share that is kept falls along a cubic ramp ("To prune, or not to prune", 2017): much while there is much to spare, little at the end,

    kept(t) = target + (1 - target) * (1 - t)³,    t = 1/n, 2/n, … 1

so that every cut is small in what it costs, and the network has recovered before the next one. The teacher is the original throughout.
There is no single plan: every round has its own, of a file that was only made on the way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from onnxprune.api import prune as pipeline
from onnxprune.api.finetune import FinetuneResult, finetune
from onnxprune.choose.budget import Budget, budget_of, flag_of
from onnxprune.choose.field import both
from onnxprune.choose.field import options as fields_of
from onnxprune.choose.finetune_options import GradualOptions, finetune_options_of
from onnxprune.choose.options import Options
from onnxprune.clock import prefixed
from onnxprune.errors import BadInputError, TargetNotReachableError
from onnxprune.model.files import check_outputs
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import embedded, save_model
from onnxprune.ops import is_quantized

METRICS = ("macs", "params")
LAST = 0.5  # share of the training steps that follow the last cut


@dataclass(frozen=True)
class Round:
    """One cut and the training after it. kept: share of the original's MACs or parameters; before, after: held-out loss."""

    kept: float
    before: float
    after: float
    steps: int


@dataclass(frozen=True)
class GradualResult:
    """The last round's model. counts: MACs and parameters, (before, after)."""

    model: onnx.ModelProto
    rounds: tuple[Round, ...]
    counts: dict[str, tuple[int, int]]
    last: FinetuneResult
    source: LoadedModel = field(repr=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically, with external data if the original had it."""
        source = self.source
        save_model(
            self.last.source.beside(self.model),
            Path(path),
            apart=source.has_external_data,
            spared=source.data_files,
        )


def ramp(target: float, rounds: int) -> list[float]:
    """Shares to keep, the target last."""
    return [target + (1 - target) * (1 - (k + 1) / rounds) ** 3 for k in range(rounds)]


def prune_during_training(
    model: Source,
    budget: Budget,
    *,
    data: str | Path,
    output: str | PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> GradualResult:
    """Prune to the budget in rounds, each followed by a short fine-tuning towards the original.

    budget: a share of `macs` or `params`. data: inputs to learn from. options: the fields of `GradualOptions` (rounds, steps, minutes)
    and of `Options`. training: other options of `finetune` (`FinetuneOptions`). Raises what these raise, and `BadInputError` for a
    target that is no share of MACs or parameters.
    """
    how, settings = both(GradualOptions, Options, {**options, "data": data}, "prune")
    target = budget_of(budget)
    if target is not None and target.is_time:
        raise BadInputError(
            f"--during-training cuts in rounds by a cost that adds up from cut to cut, and times do not: leave out "
            f"{flag_of(target.metric)}. Prune with {flag_of(target.metric)} first "
            "and train the result with 'onnxprune finetune', or give --macs."
        )
    if target is None or target.metric not in METRICS:
        raise BadInputError("--during-training needs a share of the MACs or of the parameters: --macs or --params.")
    if settings.then_quantize is not None:
        raise BadInputError("--during-training trains floats; leave out --then-quantize, and quantize what it writes.")
    if settings.tunes:
        raise BadInputError(
            "--during-training trains after every cut, the last one too; leave out --tune and --tune-steps."
        )
    if settings.free:
        raise BadInputError(
            "--during-training compares every round with the original on the same inputs, so none may shrink: leave out --free."
        )
    if data is None:
        raise BadInputError("--during-training needs inputs to learn from: give --data.")
    own = {"custom_ops": settings.custom_ops, **(training or {})}
    finetune_options_of(own)
    check_outputs({"-o": output}, (model, data))
    loaded = load(model)
    check_outputs({"-o": output}, loaded.data_files)
    if is_quantized(loaded.proto.graph):
        raise BadInputError(
            "--during-training trains floats, and this model is quantized; train and prune the float model."
        )
    with tempfile.TemporaryDirectory() as folder:
        start: Source = Path(model) if isinstance(model, str | PathLike) else model
        place = Path(folder)
        kept = {field.name: getattr(settings, field.name) for field, _ in fields_of(Options)} | {"benchmark": False}
        result = _rounds(start, loaded, target, how, progress=progress, training=own, options=kept, folder=place)
        if (whole := embedded(result.last.source.beside(result.model))) is not None:
            result = replace(result, model=whole)  # the files that it refers to go with the folder
        if output is not None:
            result.save(output)
    return result


def _rounds(
    model: Source,
    loaded: LoadedModel,
    budget: Budget,
    how: GradualOptions,
    *,
    progress: Callable[[str], None],
    training: dict[str, Any],
    options: dict[str, Any],
    folder: Path,
) -> GradualResult:
    """folder: for models on the way."""
    rounds, steps, minutes = how.rounds, how.steps, how.minutes
    current: Source = model
    kept, counts, done = 1.0, dict[str, tuple[int, int]](), list[Round]()
    tuned: FinetuneResult | None = None
    shares = [(1 - LAST) / (rounds - 1)] * (rounds - 1) + [LAST] if rounds > 1 else [1.0]
    for k, (goal, share) in enumerate(zip(ramp(budget.amount, rounds), shares, strict=True)):
        is_last = k == rounds - 1
        if goal < kept:
            try:
                cut = pipeline.prune(
                    current,
                    Budget(budget.metric, goal / kept),
                    progress=_told(progress, k, rounds),
                    **options,
                )
            except TargetNotReachableError as problem:
                if is_last:
                    start = f"--{budget.metric} {budget.amount:g}: the last round starts from {kept:.3f} of the original, where "
                    raise TargetNotReachableError(f"{start if kept < 1 else ''}{problem}") from None
                continue
            counts = _counted(counts, cut)
            kept = counts[budget.metric][1] / counts[budget.metric][0]
            current = folder / f"cut{k}.onnx"
            cut.save(current)
        tuned = finetune(
            current,
            model,
            data=options["data"],
            progress=_told(progress, k, rounds),
            steps=max(1, round(steps * share)),
            minutes=minutes and minutes * share,
            **training,
        )
        done.append(Round(kept, tuned.trained.before, tuned.trained.after, tuned.trained.steps))
        current = folder / f"tuned{k}.onnx"
        tuned.save(current)
    assert tuned is not None
    return GradualResult(tuned.model, tuple(done), counts, tuned, loaded)


def _told(progress: Callable[[str], None], k: int, rounds: int) -> Callable[[str], None]:
    return lambda text: progress(prefixed(f"round {k + 1} of {rounds}: ", text))


def _counted(counts: dict[str, tuple[int, int]], cut: pipeline.PruneResult) -> dict[str, tuple[int, int]]:
    """The original's numbers and those after this cut."""
    pairs = {"macs": cut.plan.macs, "params": cut.plan.params}
    return {m: (counts[m][0] if counts else p.before, p.after) for m, p in pairs.items() if p is not None}
