"""How to fine-tune, and how to prune during training: lists of options like that of `prune` (`choose/options.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.choose.checks import file, number, optional, switch, whole_number
from onnxprune.choose.field import checked, custom_ops_option, documented, option
from onnxprune.errors import BadInputError


def _above(flag: str, value: Any) -> float:
    return float(number(0, above=True, span="above zero")(flag, value))


def _least(flag: str, value: Any) -> float:
    return float(number(0, span="zero or more")(flag, value))


def _text(flag: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadInputError(f"{flag} must be of the form module:function, not {value!r}.")
    return value


@documented
@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune: the keyword arguments of `finetune`, and the options of the command line, which writes `from_scratch` as
    `--from-scratch`.
    """

    labels: str | Path | None = option(
        None,
        optional(file),
        "Labels: a .npz or .npy file, or the name of an array of --data.",
        cli={"metavar": "FILE|NAME"},
        by_default="none",
    )
    plan: str | Path | None = option(
        None,
        optional(file),
        "The plan that made PRUNED: compares sliced features too.",
        cli={"path": True},
        by_default="none",
    )
    from_scratch: bool = option(False, switch, "Draw all weights anew and train them with --labels.")
    steps: int = option(3000, whole_number(1), "Training steps.", cli={"type": int})
    minutes: float | None = option(
        None,
        optional(_above),
        "Stop by then; the schedule is fitted to it.",
        cli={"type": float},
        by_default="no limit",
    )
    batch: int = option(64, whole_number(1), "Samples per step.", cli={"type": int})
    rate: float | None = option(
        None,
        optional(_above),
        "Largest learning rate.",
        cli={"type": float},
        by_default="0.001 to 0.004, by the loss at the start",
    )
    decay: float = option(1e-2, _least, "Weight decay of matrices.", cli={"type": float})
    temperature: float = option(2.0, _above, "Of logits, when they are compared.", cli={"type": float})
    label_weight: float | None = option(
        None,
        optional(number(0, 1, span="between 0 and 1")),
        "Share of the labels in the loss.",
        cli={"type": float},
        by_default="0.5 beside a teacher, else 1",
    )
    features: int = option(0, whole_number(0), "Compare up to N tensors inside, too.", cli={"type": int})
    feature_weight: float = option(0.1, _least, "Weight of the tensors inside in the loss.", python_only=True)
    augment: bool = option(True, switch, "Mix, shift and disturb the inputs.", flag="--augment/--no-augment")
    patience: int = option(8, whole_number(0), "Stop after N judgements without gain (0: never).", cli={"type": int})
    samples: int | None = option(
        None, optional(whole_number(1)), "Use at most so many samples of --data.", cli={"type": int}, by_default="all"
    )
    metric: str | None = option(
        None,
        optional(_text),
        "Judge held-out samples by this score instead of the loss; larger is better.",
        cli={"metavar": "MODULE:FUNCTION"},
        by_default="the loss",
    )
    checkpoint: str | Path | None = option(
        None,
        optional(file),
        "Save the run there, and go on from it.",
        cli={"path": True, "metavar": "FILE"},
        by_default="none",
    )
    threads: int | None = option(
        None,
        optional(whole_number(1)),
        "Of student and of teacher, which run at once.",
        cli={"type": int},
        by_default="half the cores each",
    )
    custom_ops: tuple[str | Path, ...] = custom_ops_option()
    seed: int = option(0, whole_number(0), "Seed of everything random.", cli={"type": int})


def finetune_options_of(given: Mapping[str, Any]) -> FinetuneOptions:
    """The options, checked before anything is loaded. Raises `BadInputError`, in one sentence."""
    settings = checked(FinetuneOptions, given)
    if settings.label_weight is not None and settings.labels is None:
        raise BadInputError("--label-weight is the share of --labels; give them, or leave it out.")
    if settings.plan is not None and not settings.features:
        raise BadInputError("--plan says which features were sliced; give --features N, or leave it out.")
    return settings


@documented
@dataclass(frozen=True)
class GradualOptions:
    """How to prune during training, beside the options of `prune`."""

    rounds: int = option(6, whole_number(1), "Cuts of --during-training.", cli={"type": int})
    steps: int = option(
        3000,
        whole_number(1),
        "Training steps of --during-training, in all, half of them after the last cut.",
        cli={"type": int},
    )
    minutes: float | None = option(
        None, optional(_above), "Stop --during-training's training by then.", cli={"type": float}, by_default="no limit"
    )
