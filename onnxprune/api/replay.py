"""What pruning by a plan and checking by a plan have in common."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import onnx

from onnxprune.choose.layers import Choice, reduced
from onnxprune.choose.options import Options
from onnxprune.choose.resolutions import coarser
from onnxprune.choose.subject import Subject
from onnxprune.clock import Clock
from onnxprune.cut.bypass import checked
from onnxprune.cut.plan import Plan, own_plan, removed_by
from onnxprune.cut.resolution import Resolution, checked_resolution
from onnxprune.cut.tidy import tidy
from onnxprune.errors import BadInputError, quoted
from onnxprune.model.files import instead
from onnxprune.model.loaded import LoadedModel


def read_plan(plan: str | PathLike[str] | Plan) -> Plan:
    """A plan as it is, or from its file. Raises `BadInputError`."""
    if isinstance(plan, Plan):
        return plan
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not text"
        if isinstance(problem, FileNotFoundError):
            way = instead(Path(plan), "give one that --plan has written.")
            raise BadInputError(f"The plan {plan} does not exist; {way}") from None
        raise BadInputError(f"The plan {plan} cannot be read: {reason}.") from None
    return Plan.from_json(text, f"The plan {plan}")


def repeated(original: Subject, plan: Plan, what: str, settings: Options, clock: Clock) -> Choice:
    """What a plan decided, checked against the model. what: how messages call the plan. Raises `BadInputError`."""
    own_plan(plan, original.bare, what)
    if plan.resolution is not None:
        original = _at_resolution(original, plan.resolution, what, settings, clock)
    checked(original.bare, plan.bypassed, what)
    subject = reduced(original, plan.bypassed, settings, clock, decides=False)
    return Choice(subject, removed_by(plan, subject.bare, what))


def _at_resolution(original: Subject, resolution: Resolution, what: str, settings: Options, clock: Clock) -> Subject:
    checked_resolution(original.bare.model.proto, resolution, what)
    try:
        return coarser(original, resolution, settings, clock, decides=False)
    except BadInputError as problem:
        raise BadInputError(
            f"{what} resizes {quoted(resolution.input)}, but {problem}; apply it to its own model."
        ) from None


def finisher(settings: Options, loaded: LoadedModel) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """What is done to a model last: where layers may go, what has no purpose goes with them."""
    if settings.depth == "off":
        return lambda model: model
    return lambda model: tidy(loaded.beside(model))
