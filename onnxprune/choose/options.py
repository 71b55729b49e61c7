"""How to prune: the options, their checks, and how they go into a plan and come back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxprune.analyse.scope import Scope
from onnxprune.calibrate.damage import METRICS
from onnxprune.calibrate.metric import load_score
from onnxprune.choose.budget import Budget
from onnxprune.cut.plan import Plan
from onnxprune.errors import BadInputError

DEPTHS = ("off", "auto", "only")
DECIDED = ("importance", "depth", "samples", "round_to", "include", "exclude", "include_inexact", "mix")  # by a plan


@dataclass(frozen=True)
class Options:
    """How to prune. `round_to`: None takes what ONNX Runtime's convolution kernels like, 1 is off.

    recover: `lsq`, `bias` or `none`; None takes `lsq`, but `none` where there is neither `data` nor a target of cost (`--ratio`).
    then_quantize: `int8` quantizes the pruned model; its plan is that of the pruning.
    importance: `obs` needs calibration; None takes it where there is one, else `l2`. samples: at most so many are used.
    depth: `off`, `auto` (layers and nodes go beside channels where that loses less) or `only`.
    mix: where only linear maps touch units (queries and keys, values), prune principal directions. That fits weights: it needs
    `recover` `lsq`, and channels to cut; None takes it where it can be.
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
    then_quantize: str | None = None
    depth: str = "off"
    mix: bool | None = None
    check: bool = True
    benchmark: bool = True

    @property
    def scope(self) -> Scope:
        """What the analysis needs of these options."""
        return Scope(self.include, self.exclude, self.include_inexact, self.input_shapes, self.data, self.seed)


def options_of(options: dict[str, Any]) -> Options:
    unknown = set(options) - set(Options.__dataclass_fields__)
    if unknown:
        raise BadInputError(
            f"Unknown option '{sorted(unknown)[0]}'; the options are {', '.join(Options.__dataclass_fields__)}."
        )
    settings = Options(**options)
    if settings.recover not in (None, "none", "bias", "lsq"):
        raise BadInputError(f"Unknown --recover '{settings.recover}'; choose lsq, bias or none.")
    if settings.then_quantize not in (None, "int8"):
        raise BadInputError(f"Unknown --then-quantize '{settings.then_quantize}'; choose int8.")
    if settings.depth not in DEPTHS:
        raise BadInputError(f"Unknown --depth '{settings.depth}'; choose {', '.join(DEPTHS)}.")
    if settings.metric not in METRICS:
        load_score(settings.metric)
    if settings.samples < 1:
        raise BadInputError(f"--samples must be at least 1, not {settings.samples}.")
    if settings.seed < 0:
        raise BadInputError(f"--seed must be at least 0, not {settings.seed}.")
    if settings.round_to is not None and settings.round_to < 1:
        raise BadInputError(f"--round-to must be 1 (off) or more, not {settings.round_to}.")
    return settings


def completed(settings: Options, budget: Budget | None) -> Options:
    """The defaults that depend on each other. Raises `BadInputError` where `depth` asks for what is not there."""
    measured = settings.data is not None or (budget is not None and budget.metric != "ratio")
    recover = settings.recover or ("lsq" if measured else "none")
    importance = settings.importance or ("obs" if recover != "none" else "l2")
    if settings.metric != "kl" and (budget is None or budget.metric != "max_drop") and settings.then_quantize is None:
        raise BadInputError(
            "--metric says what --max-drop or --then-quantize measure; leave it out, or give one of them."
        )
    if settings.depth != "off" and budget is not None:
        if budget.metric == "ratio":
            raise BadInputError(
                "--depth needs a target of cost (--macs, --params or --size) or --max-drop, not --ratio."
            )
        if recover == "none" and importance != "obs":
            raise BadInputError("--depth needs calibration: leave out --recover none, or use --importance obs.")
    can_mix = recover == "lsq" and settings.depth != "only"
    if settings.mix and not can_mix:
        raise BadInputError("--mix needs --recover lsq, and channels to cut: give --data, and leave out --depth only.")
    return replace(settings, recover=recover, importance=importance, mix=can_mix and settings.mix is not False)


def _flag(name: str) -> str:
    return "--mix/--no-mix" if name == "mix" else f"--{name.replace('_', '-')}"


def settings_of(settings: Options, budget: Budget | None) -> dict[str, Any]:
    """What a replay needs to see the same units."""
    return {
        "target": None if budget is None else {budget.metric: budget.amount},
        "importance": settings.importance,
        "recover": settings.recover,
        "samples": settings.samples,
        "then_quantize": settings.then_quantize,
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "include_inexact": settings.include_inexact,
        "input_shapes": {k: list(v) for k, v in settings.input_shapes.items()},
        "seed": settings.seed,
        "depth": settings.depth,
        "mix": settings.mix,
    }


def replayed(settings: Options, plan: Plan) -> Options:
    """The options that a plan was made with. Raises `BadInputError` for others that ask for a decision."""
    for name in DECIDED:
        if getattr(settings, name) != getattr(Options(), name):
            raise BadInputError(f"{_flag(name)} does not go with --apply: the plan has decided that.")
    stored = plan.settings
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
            seed=settings.seed or int(stored.get("seed", 0)),
            then_quantize=settings.then_quantize,
            metric=settings.metric,
            depth=str(stored.get("depth", "off")),
            mix=None if stored.get("mix") else False,
            check=settings.check,
            benchmark=settings.benchmark,
        )
    except (TypeError, ValueError, AttributeError) as problem:
        raise BadInputError(f"The plan's settings cannot be read: {problem}.") from None
