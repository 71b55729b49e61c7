"""`prune --tune`: what is cut and repaired learns from the original, before it is quantized, measured and written.

    ready(settings)                                       # PyTorch is there, and nothing speaks against it
    model, places, told = tuned_by(given, settings, …)    # the same graph with other numbers, and where they are

First block by block (`training/blocks.py`), then the whole network, as `finetune` trains: without labels, with the original as teacher,
on the inputs that the repair was fitted to; those that it held out judge here, too, whole sources. Beside the outputs, ends of
residual blocks are compared (of a chain: layers).
Every constant that changed is listed by node and input, as the repair's are, so that `verify` still proves the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx

from onnxprune import runtime
from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.finetune_options import FinetuneOptions, finetune_options_of
from onnxprune.choose.layers import Choice
from onnxprune.choose.options import Options
from onnxprune.clock import Clock, prefixed
from onnxprune.cut.plan import MOST_INPUTS, Pair, plan_groups
from onnxprune.cut.resolution import with_coarse
from onnxprune.errors import BadInputError
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.patch import constants_at, inputs_at, with_constants
from onnxprune.ops import is_quantized
from onnxprune.report.values import Tuned

if TYPE_CHECKING:
    from onnxprune.training.blocks import Pace

FEATURES = 16  # tensors inside that are compared, at most
BLOCKS = 0.4  # of the time, block by block, at most
BATCH = 32


Places: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Untuned:
    """What training starts from. original: the teacher. choice: what left it.

    bare: the cut model, nothing else changed; start: the same with other constants at `places` (node key, input).
    calibration: inputs, and which of them are held out.
    """

    original: LoadedModel
    choice: Choice
    bare: onnx.ModelProto
    start: onnx.ModelProto
    places: Places
    calibration: Calibration


def ready(settings: Options, loaded: LoadedModel | None = None) -> None:
    """Raise `BadInputError` where `--tune` cannot be done, before anything takes long. loaded: the original, once it is known."""
    if not settings.tunes:
        return
    flag = "--tune" if settings.tune is not None else "--tune-steps"
    if settings.data is None:
        raise BadInputError(
            f"{flag} learns what the original says of inputs of yours, and of made-up ones that is worth nothing: give --data."
        )
    if settings.free:
        raise BadInputError(
            f"{flag} compares the result with the original on the same inputs, so none may shrink: leave out --free."
        )
    if loaded is not None and is_quantized(loaded.proto.graph):
        raise BadInputError(f"{flag} trains floats, and this model is quantized; prune and tune the float model.")
    import onnxprune.training  # noqa: F401  names the extra where PyTorch is missing


def tuned_by(
    given: Untuned, settings: Options, finish: Callable[[onnx.ModelProto], onnx.ModelProto], clock: Clock
) -> tuple[onnx.ModelProto, Places, Tuned]:
    """The trained model, not finished yet; where its constants are others than those of the cut one; and for the report.

    finish: what is done to a model last.
    """
    from onnxprune.api import finetuning
    from onnxprune.training.program import uses
    from onnxprune.training.samples import calibrated

    original, samples, subject = given.original, given.calibration.samples, given.choice.subject
    cut = finetuning.Cut(
        removed=finetuning.removed_by(plan_groups(subject.bare, given.choice.removed)),
        mixed=frozenset(subject.mixed),
        at_ends=True,
        by_minutes=settings.tune is not None,
        judge=settings.judge,
        is_repaired=bool(given.places),
    )
    with finetuning.threads(None):
        run = finetuning.Tuning(
            replace(original, proto=given.start),
            _teacher(given),
            partial(calibrated, samples, runtime.graph_inputs(original.proto)),
            cut=cut,
            settings=_how(settings),
            progress=lambda text: clock.progress(prefixed("tune: ", text)),
        )
        readers = uses(run.network.program)
        run.network.leave([k for k in run.network.weights if any(i >= MOST_INPUTS for _, i in readers[k])])
        begin = time.perf_counter()
        blocks, loss = run.blocks(_pace(settings))
        spent = time.perf_counter() - begin
        if settings.tune is not None:  # what blocks leave
            run.schedule = replace(run.schedule, minutes=settings.tune - spent / 60)
        result = run.result()
    new = run.network.changed()
    live = inputs_at(finish(given.bare), dict.fromkeys((*given.places, *new)))  # what nodes read that stay
    values = constants_at(original.beside(given.start), given.places) | new
    values = {place: values[place] for place in live if place in values}
    trained = result.trained
    summary = Tuned(
        minutes=round((spent + trained.seconds) / 60, 3),
        blocks=blocks,
        steps=trained.steps,
        best_step=trained.best_step,
        stopped=trained.stopped,
        loss=Pair(loss, trained.after),
        samples=sum(samples.sizes[k] for k in samples.own if not samples.held[k]),
        held_out=sum(samples.sizes[k] for k in samples.own if samples.held[k]),
        features=result.features,
        constants=len(set(inputs_at(given.start, [p for p in new if p in live]).values())),
    )
    return with_constants(given.bare, values), tuple(values), summary


def _teacher(given: Untuned) -> LoadedModel:
    """The original; where the model works on smaller pictures, with its tensors at that resolution inside, for the comparison of those."""
    original, resolution = given.original, given.choice.subject.resolution
    judged = set(given.calibration.judged.tensors)
    if resolution is None or not judged <= {o.name for o in original.proto.graph.output}:
        return original
    both = with_coarse(original.proto, resolution)
    return original if both is None else replace(original, proto=both)


def _pace(settings: Options) -> Pace:
    from onnxprune.training.blocks import Pace

    own: dict[str, Any] = {"seed": settings.seed}
    if settings.tune_steps is not None:
        return Pace(min(Pace.steps, settings.tune_steps), **own)
    return Pace(minutes=None if settings.tune is None else BLOCKS * settings.tune, **own)


def _how(settings: Options) -> FinetuneOptions:
    own = {
        "features": FEATURES,
        "seed": settings.seed,
        "custom_ops": settings.custom_ops,
        "batch": BATCH,
        "patience": 0,  # a good start is passed late in the schedule, if at all
    }
    return finetune_options_of(own if settings.tune_steps is None else own | {"steps": settings.tune_steps})
