"""Load, check and compare a pruned model with the masked original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import onnx

from onnxprune import runtime
from onnxprune.clock import Share, unshared
from onnxprune.cut.bypass import Bypass
from onnxprune.cut.ports import ports
from onnxprune.errors import BadInputError, VerificationError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.draws import seeded
from onnxprune.model.interface import marked
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.save import embedded
from onnxprune.proof.compare import deviation, error, is_vacuous, not_compared, tolerance_of, verdict
from onnxprune.proof.interface import check_interface
from onnxprune.proof.masked import masked_feeds, masked_keys, masked_original, standing_in
from onnxprune.proof.steady import check_steady
from onnxprune.proof.unsigned import exact_products
from onnxprune.proof.verdict import Verdict

SCALES = (0.1, 10.0, 0.01)


def proved(
    analysis: Analysis,
    removed: Bools,
    pruned: Model,
    seed: int,
    original: LoadedModel | None = None,
    bypasses: Sequence[Bypass] = (),
    share: Share = unshared,
) -> Verdict:
    """Load, check and compare the pruned model; raise `VerificationError` where anything is off.

    original, bypasses: where the analysis is of what bypasses left of an original. share: told how much is done.
    """
    model, changed = analysis.model, ports(analysis, removed)
    check_interface(model.proto, pruned.proto, changed)
    pruned = pruned.beside(marked(pruned.proto, changed))
    if bypasses:
        _check_shapes(pruned)
    types = runtime.types_of(model, analysis.feeds, masked_keys(analysis, removed))
    share(0.25)
    try:
        base = replace(model, proto=seeded(model.proto))
        if original and bypasses:
            base = replace(original, proto=standing_in(seeded(original.proto), bypasses))

        def masked() -> runtime.Session:
            proto = masked_original(analysis, removed, types, base)
            return runtime.Session(model.beside(exact_products(proto)), what="the masked original")

        def plain() -> runtime.Session:
            return runtime.Session(pruned.beside(exact_products(pruned.proto)), what="the pruned model")

        names = [o.name for o in model.proto.graph.output]
        silent = set(names)  # until something of them was compared

        def compare(pair: Sequence[Feeds]) -> tuple[float, float]:
            fed = [masked_feeds(analysis, removed, f) for f in pair]
            results = list(zip(_answers(masked, fed), _answers(plain, pair), strict=True))
            for wanted, _ in results:
                silent.intersection_update(not_compared(wanted, names))
            if all(is_vacuous(wanted) for wanted, _ in results):
                raise VerificationError(
                    "The model's outputs are not finite on these inputs, so nothing can be proved; give others with --data."
                )
            return max(error(*r) for r in results), max(deviation(*r) for r in results)

        found, apart = compare(analysis.feeds)
        share(0.75)
        _check_optimized(model, pruned, analysis.feeds)
        if found <= tolerance_of(model.proto, 0.0):
            return verdict(analysis, removed, found, silent=silent)
        # Is it the model's own noise? Then random inputs of another scale may show what these could not.
        for scale in (None, *SCALES):
            pair = analysis.feeds
            if scale is not None:
                pair = runtime.rescaled(analysis.feeds, seed, scale)
                found, apart = compare(pair)
            noise = _noise(model, pair)
            if found <= tolerance_of(model.proto, noise, apart):
                break
        else:
            check_steady(model, analysis.feeds[0])
    except BadInputError as problem:
        raise VerificationError(f"The comparison does not run: {problem} Please report this model.") from None
    return verdict(analysis, removed, found, noise, apart, silent=silent)


def _answers(make: Callable[[], runtime.Session], pair: Sequence[Feeds]) -> list[list[Array]]:
    """What a model answers to each of the feeds. It is loaded for that and let go: no two of those that are compared are held at once."""
    session = make()
    return [session.run_whole(feeds) for feeds in pair]


def _noise(model: Model, pair: Sequence[Feeds]) -> float:
    """How far the model is from itself with ONNX Runtime's optimizations."""
    model = model.beside(exact_products(model.proto))
    plain, optimized = (
        _answers(partial(runtime.Session, model, optimized=optimized), pair) for optimized in (False, True)
    )
    return max(error(*both) for both in zip(plain, optimized, strict=True))


def check_well_formed(original: Model, result: Model) -> None:
    """The result passes ONNX's checker, if the original does."""
    problem = _refused(result)
    if problem is not None and _refused(original) is None:
        raise VerificationError(f"ONNX's checker refuses the result: {problem} Please report this model.")


def _check_shapes(pruned: Model) -> None:
    """Tensors of one observed shape need not be of one inferred shape."""
    problem = _refused(pruned, full=True)
    if problem is not None:
        raise VerificationError(f"ONNX's shape inference refuses what these bypasses leave: {problem} Use --depth off.")


def _refused(model: Model, full: bool = False) -> str | None:
    """What ONNX's checker (full: and its shape inference) says against a model; None too where it is too large for it."""
    try:
        whole = embedded(model)
        if whole is not None:
            onnx.checker.check_model(whole, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        return str(problem).splitlines()[0][:200]
    except ValueError:  # too large for the checker
        return None
    return None


def _check_optimized(model: Model, pruned: Model, pair: Sequence[Feeds]) -> None:
    """The pruned model runs with ONNX Runtime's optimizations, too, unless they break the original."""
    try:
        session = runtime.Session(pruned, optimized=True, what="the pruned model")
    except BadInputError:
        try:
            runtime.Session(model, optimized=True)
        except BadInputError:
            return
        raise
    for feeds in pair:
        session.run(feeds)
