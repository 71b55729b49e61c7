"""Is a pruned model what its plan says? load -> repeat the plan's choice -> compare with the masked original."""

from __future__ import annotations

from os import PathLike
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.api.replay import finisher, read_plan, repeated
from onnxprune.choose.options import options_of, replayed
from onnxprune.choose.subject import uncalibrated
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Plan
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError
from onnxprune.model.load import Source, load
from onnxprune.ops import is_quantized
from onnxprune.proof.prove import proved
from onnxprune.proof.refit import check_refit
from onnxprune.proof.verdict import Verdict


def verify(
    original: Source, pruned: Source, plan: str | PathLike[str] | Plan, *, progress: Progress = silent, **options: Any
) -> Verdict:
    """Compare a pruned model with the masked original. Raises `VerificationError` where they differ, and where the pruned model is not
    what the plan makes of the original, fitted weights apart.

    original, pruned: paths or ModelProtos. plan: that `pruned` was made by. options: data (inputs to compare on, a .npz file or a
    folder of them; made up from `seed` where there are none), seed, custom_ops; see `Options`. Raises `BadInputError` where the plan
    belongs to another model.
    """
    given = options_of(options, "verify")
    runtime.load_custom_ops(given.custom_ops)
    clock = Clock(progress)
    clock("load")
    loaded, other = load(original), load(pruned)
    made = read_plan(plan)
    if is_quantized(other.proto.graph) and not is_quantized(loaded.proto.graph):
        raise BadInputError(
            "The pruned model was quantized, so it equals no part of its original; "
            "verify what the same command writes without --then-quantize."
        )
    settings = replayed(given, made)
    clock("analyse")
    analysis = analysis_of(loaded, settings.scope, share=clock.share)
    choice = repeated(uncalibrated(analysis), made, "the plan", settings, clock)
    subject, removed = choice.subject, choice.removed
    clock("rewrite")
    cut, finish = rewrite(subject.bare, removed), finisher(settings, loaded)
    run = loaded.beside(finish(cut)) if made.refit else other  # fitted weights are no part of what is equal
    if made.refit:
        check_refit(loaded.beside(cut), other, made.refit, made.refit_sha256, finish)
    clock("verify")
    verdict = proved(subject.bare, removed, run, given.seed, loaded, subject.bypasses, clock.share)
    if not made.refit:  # what no input reaches is not run: branches, values that are overwritten
        check_refit(loaded.beside(cut), other, (), None, finish)
    return verdict
