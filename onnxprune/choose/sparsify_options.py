"""What to set to zero, and how to time models: lists of options like that of `prune` (`choose/options.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.choose.checks import (
    float_of,
    number,
    one_of,
    optional,
    parse_numbers,
    switch,
    whole_number,
    whole_numbers,
)
from onnxprune.choose.field import documented, option
from onnxprune.errors import BadInputError
from onnxprune.sparsity import CRITERIA, SCOPES, STORES


def _pattern(flag: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInputError(f"{flag} is of the form N:M, such as '2:4', not {value!r}.")
    return value


@documented
@dataclass(frozen=True)
class SparsifyOptions:
    """What to set to zero: exactly one of threshold, sparsity and pattern."""

    threshold: float | None = option(
        None, optional(float_of), "Set every weight of smaller magnitude to zero.", cli={"type": float}
    )
    sparsity: float | None = option(
        None, optional(float_of), "Set this share of the weights to zero.", cli={"type": float}
    )
    pattern: str | None = option(
        None,
        optional(_pattern),
        "Of every M consecutive inputs of an output keep at most N, such as 2:4.",
        cli={"metavar": "N:M"},
    )
    scope: str | None = option(
        None, optional(one_of(*SCOPES)), "What --sparsity is a share of.", cli={"choices": SCOPES}, by_default="layer"
    )
    criterion: str | None = option(
        None,
        optional(one_of(*CRITERIA)),
        "Which weights matter.",
        cli={"choices": CRITERIA},
        by_default="obs with --data, else magnitude; always magnitude for --threshold",
    )
    store: str = option("dense", one_of(*STORES), "How zeros are stored.", cli={"choices": STORES})
    then_prune: bool = option(False, switch, "Remove units that became zero, or that nothing reads any more.")


@documented
@dataclass(frozen=True)
class BenchOptions:
    """How long to time models, and in which settings; each setting is timed on its own, all models in turn."""

    threads: tuple[int, ...] = option(
        (),
        whole_numbers(0),
        "Threads of each model, several after each other; 0: as the engine likes.",
        cli={"metavar": "N,N,…", "read": parse_numbers("--threads")},
        by_default="1",
    )
    batch: tuple[int, ...] = option(
        (),
        whole_numbers(1),
        "Samples of a run, several after each other, where the model's batch is dynamic.",
        cli={"metavar": "N,N,…", "read": parse_numbers("--batch")},
        by_default="as in the inputs",
    )
    runs: int = option(
        100,
        whole_number(1),
        "Rounds at most, each of which runs every model for a millisecond at least.",
        cli={"type": int},
    )
    seconds: float = option(
        10.0,
        number(0, above=True, span="above zero"),
        "Stop a setting by then, after three rounds at least.",
        cli={"type": float},
    )


@documented
@dataclass(frozen=True)
class ProfileOptions:
    """How long to profile models."""

    runs: int = option(30, whole_number(1), "Profiled runs of each model at most.", cli={"type": int})
    seconds: float = option(
        60.0,
        number(0, above=True, span="above zero"),
        "Stop by then, after three runs at least.",
        cli={"type": float},
    )


@documented
@dataclass(frozen=True)
class CompareOptions:
    """How models are timed beside each other."""

    benchmark: bool = option(
        True, switch, "Time the models, in turn.", flag="--benchmark/--no-benchmark", by_default="benchmark"
    )
    runs: int = option(30, whole_number(1), "Rounds at most, each of which runs every model.", cli={"type": int})
    seconds: float = option(
        10.0,
        number(0, above=True, span="above zero"),
        "Stop by then, after three rounds at least.",
        cli={"type": float},
    )
