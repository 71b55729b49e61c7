"""How to prune: one list of options. The command line, the checks, what a plan stores, and the documentation come from its fields.

A further option is a further field. Its metadata is `choose/field.py`; what it may be is `choose/checks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.analyse.scope import Scope
from onnxprune.choose import importance
from onnxprune.choose.budget import Budget
from onnxprune.choose.checks import (
    existing,
    globs,
    number,
    one_of,
    optional,
    parse_shapes,
    shapes,
    switch,
    whole_number,
)
from onnxprune.choose.field import Replay, checked, custom_ops_option, default_of, documented, flag_of, option, options
from onnxprune.choose.importance import IMPORTANCES, Importance, importance_of
from onnxprune.errors import BadInputError

if TYPE_CHECKING:
    from onnxprune.cut.plan import Plan

RECOVER = ("lsq", "bias", "none")
PRUNE = ("prune",)
CUT = ("prune", "explore")
DEPTHS = ("off", "auto", "only")
RESOLUTIONS = ("off", "auto")
QUANTIZED = ("int8",)
COSTS = ("macs", "latency")


def _metric(flag: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInputError(f"{flag} must be a name such as 'kl', not of type {type(value).__name__}.")
    if value != "kl":  # the others need numpy, or the user's module
        from onnxprune.calibrate.damage import METRICS
        from onnxprune.calibrate.metric import load_score

        if value not in METRICS:
            load_score(value)
    return value


def _of_plan(read: Callable[[Any], Any]) -> Replay:
    """What the plan stores; the given value where it does not."""
    return lambda given, stored: given if stored is None else read(stored)


def _or_of_plan(read: Callable[[Any], Any]) -> Replay:
    """The given value; what the plan stores where none was given."""
    return lambda given, stored: given if given or stored is None else read(stored)


def _names(stored: Any) -> tuple[str, ...]:
    return tuple(str(x) for x in stored)


def _sizes(stored: Any) -> dict[str, tuple[int, ...]]:
    return {str(k): tuple(int(d) for d in v) for k, v in stored.items()}


@documented
@dataclass(frozen=True)
class Options:
    """How to prune: the keyword arguments of `prune`, and the options of the command line, which writes `round_to` as `--round-to`."""

    metric: str = option(
        "kl",
        _metric,
        "What --max-drop limits, on samples set aside, and --then-quantize and explore report, on held-out ones: kl, cosine or top1"
        " compare with the original's outputs;"
        " MODULE:FUNCTION scores outputs and labels, larger is better.",
        cli={"metavar": "kl|cosine|top1|MODULE:FUNCTION"},
        commands=(*CUT, "compare"),
    )
    cost: str = option(
        "macs",
        one_of(*COSTS),
        "What --max-drop keeps as little of as it can: multiply-accumulates, or measured time.",
        cli={"choices": COSTS},
        decided=True,
        stored=True,
        replay=_of_plan(str),
        commands=PRUNE,
    )
    judge: tuple[str, ...] = option(
        (),
        globs,
        "Judge the model by this tensor instead of its outputs.",
        cli={"multiple": True, "metavar": "TENSOR"},
        by_default="its outputs; where those hold no floats or their size depends on values, what they follow from",
        commands=("prune", "explore", "compare", "sparsify"),
    )
    round_to: int | None = option(
        None,
        optional(whole_number(1, " (off)")),
        "Keep multiples of N channels in convolutions, which ONNX Runtime's kernels like.",
        cli={"type": int},
        by_default="8; 1 = off",
        decided=True,
        commands=CUT,
    )
    importance: str | Importance | None = option(
        None,
        optional(importance.checked),
        "What makes a unit important: obs (what layers that read it lose after the best repair; needs calibration), a norm of its weights,"
        " or chance.",
        cli={"choices": tuple(IMPORTANCES)},
        by_default="obs where there is calibration, else l2",
        decided=True,
        stored=True,
        replay=lambda given, stored: "l2",  # nothing is decided any more, so nothing is calibrated for it
        commands=CUT,
    )
    recover: str | None = option(
        None,
        optional(one_of(*RECOVER)),
        "Repair what is left: lsq fits weights and biases by least squares, bias only biases, none nothing.",
        cli={"choices": RECOVER},
        by_default="lsq; none with --ratio and no --data",
        stored=True,
        replay=lambda given, stored: given or ("none" if stored is None else str(stored)),
        commands=CUT,
    )
    then_quantize: str | None = option(
        None,
        optional(one_of(*QUANTIZED)),
        "Quantize the pruned model with ONNX Runtime; the report compares all four. The plan is that of the pruning.",
        cli={"choices": QUANTIZED},
        by_default="no",
        stored=True,
        commands=PRUNE,
    )
    tune: float | None = option(
        None,
        optional(number(0, above=True, span="above zero minutes")),
        "Then train what is left towards the original for so many minutes, without labels, on the inputs of --data; needs PyTorch.",
        cli={"type": float, "metavar": "MINUTES"},
        by_default="no",
        stored=True,
        commands=PRUNE,
    )
    tune_steps: int | None = option(
        None,
        optional(whole_number(1)),
        "Train for at most so many steps; without --tune, for no less either, so that the same command gives the same bytes.",
        cli={"type": int},
        by_default="3000 with --tune",
        stored=True,
        commands=PRUNE,
    )
    depth: str | None = option(
        None,
        optional(one_of(*DEPTHS)),
        "Remove layers and nodes: beside channels where that loses less (auto), or nothing else (only).",
        cli={"choices": DEPTHS},
        by_default="auto for --speedup and --latency with --data, else off",
        decided=True,
        stored=True,
        replay=_of_plan(str),
        commands=PRUNE,
    )
    resolution: str | None = option(
        None,
        optional(one_of(*RESOLUTIONS)),
        "Resize the picture inside the model where that loses less than channels alone, or hardly more; what it is fed stays as it is.",
        cli={"choices": RESOLUTIONS},
        by_default="auto for --macs, --speedup and --latency with --data, else off",
        decided=True,
        commands=PRUNE,
    )
    mix: bool | None = option(
        None,
        optional(switch),
        "Where only linear maps make and read units (queries and keys, values), prune their principal directions instead of single"
        " units. That changes weights, so it needs --recover lsq, and channels to cut.",
        flag="--mix/--no-mix",
        by_default="where weights are fitted",
        decided=True,
        stored=True,
        replay=lambda given, stored: None if stored else False,
        commands=CUT,
    )
    samples: int | None = option(
        None,
        optional(whole_number(1)),
        "Use at most so many samples of --data, the first ones.",
        cli={"type": int},
        by_default="all, unless that would take much longer than ten minutes, or too much room",
        commands=("prune", "explore", "compare", "sparsify"),
        decided=True,
        stored=True,
        replay=_of_plan(int),
    )
    include: tuple[str, ...] = option(
        (),
        globs,
        "Only weights whose node or tensor name matches.",
        cli={"multiple": True, "metavar": "GLOB"},
        by_default="all",
        commands=("prune", "explore", "sparsify", "inspect", "profile"),
        decided=True,
        stored=True,
        replay=_of_plan(_names),
    )
    exclude: tuple[str, ...] = option(
        (),
        globs,
        "Leave nodes or tensors with these names alone.",
        cli={"multiple": True, "metavar": "GLOB"},
        by_default="none",
        commands=("prune", "explore", "sparsify", "inspect", "profile"),
        decided=True,
        stored=True,
        replay=_of_plan(_names),
    )
    free: tuple[str, ...] = option(
        (),
        globs,
        "Let the axes of inputs and outputs with these names shrink; IN=OUT also ties an input to the output that the next step is fed.",
        cli={"multiple": True, "metavar": "GLOB"},
        by_default="none",
        commands=("prune", "explore", "inspect", "profile"),
        decided=True,
        stored=True,
        replay=_of_plan(_names),
    )
    include_inexact: bool = option(
        False,
        switch,
        "Also prune axes that LayerNorm and its kin normalise over; the result then only resembles the masked original.",
        commands=("prune", "explore", "inspect", "profile"),
        decided=True,
        stored=True,
        replay=_of_plan(bool),
    )
    input_shapes: dict[str, tuple[int, ...]] = option(
        {},
        shapes,
        "Shape of an input with dynamic dimensions.",
        flag="--input-shape",
        cli={"multiple": True, "metavar": "NAME:D,D,…", "read": parse_shapes},
        by_default="sizes that the model runs on",
        commands=("prune", "explore", "compare", "sparsify", "inspect", "verify", "bench", "profile"),
        stored=True,
        replay=_or_of_plan(_sizes),
    )
    data: str | Path | None = option(
        None,
        optional(existing("a .npz file or a folder of them")),
        "Inputs to observe, calibrate and repair with: a .npz file with arrays named like the inputs, or a folder of them.",
        cli={"path": True, "metavar": "FILE.npz|DIR"},
        by_default="made-up inputs",
        commands=("prune", "explore", "compare", "sparsify", "inspect", "verify", "bench", "profile"),
    )
    custom_ops: tuple[str | Path, ...] = custom_ops_option(
        ("prune", "explore", "compare", "sparsify", "inspect", "verify", "bench", "profile")
    )
    seed: int = option(
        0,
        whole_number(0),
        "Seed of everything random.",
        cli={"type": int},
        commands=("prune", "explore", "compare", "sparsify", "inspect", "verify", "bench", "profile"),
        stored=True,
        replay=_or_of_plan(int),
    )
    check: bool = option(
        True, switch, "Prove the result equal to the masked original.", python_only=True, commands=PRUNE
    )
    benchmark: bool = option(
        True, switch, "Measure the latency before and after.", python_only=True, commands=("prune", "sparsify")
    )

    @property
    def tunes(self) -> bool:
        """Is the result trained towards the original?"""
        return self.tune is not None or self.tune_steps is not None

    @property
    def scope(self) -> Scope:
        """What the analysis needs of these options."""
        return Scope(**{field.name: getattr(self, field.name) for field in fields(Scope)})


def options_of(given: Mapping[str, Any], command: str = "prune") -> Options:
    """The options, checked before anything is loaded. command: takes only its own. Raises `BadInputError`, in one sentence."""
    return checked(Options, given, command)


def completed(settings: Options, budget: Budget | None) -> Options:
    """The defaults that depend on each other. Raises `BadInputError` where `depth` asks for what is not there."""
    measured = settings.data is not None or (budget is not None and budget.metric != "ratio")
    recover = settings.recover or ("lsq" if measured else "none")
    chosen = settings.importance or ("obs" if recover != "none" else "l2")
    if settings.metric != "kl" and (budget is None or budget.metric != "max_drop") and settings.then_quantize is None:
        raise BadInputError(
            "--metric says what --max-drop or --then-quantize measure; leave it out, or give one of them."
        )
    if settings.cost != "macs" and (budget is None or budget.metric != "max_drop"):
        raise BadInputError("--cost goes with --max-drop; for a time of your own give --speedup or --latency.")
    can_judge = recover != "none" or importance_of(chosen).needs_calibration
    by_time = budget is not None and budget.is_time and settings.data is not None and can_judge
    depth = settings.depth or ("auto" if by_time else "off")
    if depth != "off" and budget is not None:
        if budget.metric == "ratio":
            raise BadInputError(
                "--depth needs a target of cost (--macs, --params, --size, --speedup or --latency) or --max-drop, not --ratio."
            )
        if not can_judge:
            raise BadInputError("--depth needs calibration: leave out --recover none, or use --importance obs.")
    resolution = _resolution(settings, budget, recover, depth)
    can_mix = recover == "lsq" and depth != "only"
    if settings.mix and not can_mix:
        raise BadInputError("--mix needs --recover lsq, and channels to cut: give --data, and leave out --depth only.")
    mix = can_mix and settings.mix is not False
    return replace(settings, recover=recover, importance=chosen, depth=depth, resolution=resolution, mix=mix)


def _resolution(settings: Options, budget: Budget | None, recover: str, depth: str) -> str:
    """May the picture get coarser? Raises `BadInputError` where it is asked for and cannot be."""
    if budget is None:
        return "off"
    layers_stay = depth == "off" or (budget.is_time and depth == "auto")
    can = (budget.metric == "macs" or budget.is_time) and layers_stay
    can = can and settings.data is not None and recover == "lsq" and not settings.free
    if settings.resolution == "auto" and not can:
        raise BadInputError(
            "--resolution auto needs --macs (without --depth), --speedup or --latency, and --data; it does not go with --free "
            "or another --recover than lsq."
        )
    return settings.resolution or ("auto" if can else "off")


def settings_of(settings: Options, budget: Budget | None, set_aside: int = 0) -> dict[str, Any]:
    """What a plan keeps: the target, and what a replay needs to see the same units. set_aside: sources that a limit needs (`Plan`)."""
    aside = {"set_aside": set_aside} if set_aside else {}
    kept = {field.name: _plain(getattr(settings, field.name)) for field, told in options(Options) if told.stored}
    return {"target": None if budget is None else {budget.metric: budget.amount}} | kept | aside


def _plain(value: Any) -> Any:
    """As JSON has it; of an importance the name."""
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        return {k: _plain(x) for k, x in value.items()}
    return value if value is None or isinstance(value, str | int | float) else value.name


def replayed(settings: Options, plan: Plan) -> Options:
    """The options that a plan was made with. Raises `BadInputError` for others that ask for a decision."""
    found = {}
    for field, told in options(Options):
        given = getattr(settings, field.name)
        if told.decided and given != default_of(field):
            raise BadInputError(f"{flag_of(field)} does not go with --apply: the plan has decided that.")
        try:
            value = told.replay(given, plan.settings.get(field.name))
            found[field.name] = told.check(flag_of(field), value) if told.stored else value
        except BadInputError as problem:
            raise BadInputError(f"The plan's settings cannot be used: {problem}") from None
        except (TypeError, ValueError, AttributeError) as problem:
            raise BadInputError(f"The plan's settings cannot be read: {problem}.") from None
    return Options(**found)
