"""How many weights of a layer become zero, and which.

A layer is a matrix W [g, K, O]: groups, inputs of one output, outputs (`ops/linear.py`). A target is one of

    Threshold(0.2)          every weight of smaller magnitude            (Han et al. 2015)
    Share(0.5, "layer")     this share of each layer, or of all together (`global`)
    Pattern(2, 4, ...)      of every 4 consecutive inputs at most 2 are not zero

Masks are bool [g, K, O], True where a weight becomes zero. They take scores of the same shape, larger is more important.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import BadInputError
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.sparsity import SCOPES

Scores = NDArray[np.floating]
MAX_PATTERN = 1024


@dataclass(frozen=True)
class Threshold:
    """Weights of magnitude below `magnitude` become zero."""

    magnitude: float

    def __str__(self) -> str:
        return f"magnitude below {self.magnitude:g}"


@dataclass(frozen=True)
class Share:
    """`amount` of the weights become zero, of each layer or (`global`) of all together."""

    amount: float
    scope: str = "layer"

    def __str__(self) -> str:
        return f"{self.amount:.0%} of {'each layer' if self.scope == 'layer' else 'all layers together'}"


@dataclass(frozen=True)
class Pattern:
    """Of every `of` consecutive inputs of an output at most `keep` stay."""

    keep: int
    of: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.of} along the inputs"


Target = Threshold | Share | Pattern


def target_of(threshold: float | None, sparsity: float | None, pattern: str | None, scope: str | None = None) -> Target:
    """The one target that was given. Raises `BadInputError`."""
    if sum(x is not None for x in (threshold, sparsity, pattern)) != 1:
        raise BadInputError("Give exactly one target: --threshold, --sparsity or --pattern.")
    if scope is not None and sparsity is None:
        raise BadInputError("--scope says what --sparsity is a share of; leave it out otherwise.")
    if scope not in (None, *SCOPES):
        raise BadInputError(f"Unknown --scope '{scope}'; choose {' or '.join(SCOPES)}.")
    if threshold is not None:
        if not 0 < threshold < np.inf:
            raise BadInputError(f"--threshold must be a number above 0, not {threshold:g}.")
        return Threshold(threshold)
    if sparsity is not None:
        if not 0 < sparsity < 1:
            raise BadInputError(f"--sparsity must lie between 0 and 1, not be {sparsity:g}.")
        return Share(sparsity, scope or "layer")
    return pattern_of(str(pattern))


def pattern_of(text: str) -> Pattern:
    """`"2:4"`."""
    keep, _, of = text.partition(":")
    if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of) <= MAX_PATTERN):
        raise BadInputError(
            f"--pattern '{text}' is not of the form N:M with 0 < N < M <= {MAX_PATTERN}, such as 2:4 (at most 2 of 4 stay)."
        )
    return Pattern(int(keep), int(of))


# ---------------------------------------------------------------- masks


def smallest(scores: Scores, count: int) -> Bools:
    """Exactly `count` positions, those of the smallest scores; of equal ones the first."""
    mask: Bools = np.zeros(scores.shape, np.bool_)
    if count > 0:
        flat, chosen = scores.ravel(), mask.reshape(-1)
        edge = np.partition(flat, count - 1)[count - 1]
        chosen[flat < edge] = True
        chosen[np.flatnonzero(flat == edge)[: count - np.count_nonzero(chosen)]] = True
    return mask


def smallest_per_output(scores: Scores, count: int) -> Bools:
    """`count` positions of scores [g, K, O], as many of each output's K as of every other's; the rest where scores are smallest."""
    outputs = max(scores.shape[0] * scores.shape[2], 1)
    each, rest = divmod(count, outputs)
    rank = np.empty(scores.shape, np.int64)
    order = np.argsort(scores, axis=1, kind="stable")
    np.put_along_axis(rank, order, np.arange(scores.shape[1])[None, :, None], axis=1)
    return np.asarray((rank < each) | smallest(np.where(rank == each, scores, np.inf), rest))


def outside_pattern(scores: Scores, pattern: Pattern, run: int) -> Bools:
    """All but the `keep` largest of every `of` inputs; counting starts anew every `run` inputs (a tap of a kernel)."""
    groups, inputs, outputs = scores.shape
    taps, width = inputs // run, -(-run // pattern.of) * pattern.of
    padded = np.full((groups, taps, width, outputs), -1.0)
    padded[:, :, :run] = scores.reshape(groups, taps, run, outputs)
    parts = padded.reshape(groups, taps, -1, pattern.of, outputs)
    order = np.argsort(-parts, axis=3, kind="stable")
    mask = np.ones(parts.shape, bool)
    np.put_along_axis(mask, order[:, :, :, : pattern.keep], False, axis=3)
    return np.asarray(mask.reshape(groups, taps, width, outputs)[:, :, :run].reshape(scores.shape))


def obeys(w: Array, pattern: Pattern, run: int) -> bool:
    """Do the weights [g, K, O] have the pattern?"""
    return not (w[outside_pattern(np.abs(w), pattern, run)] != 0).any()


def shares_of(scores: Sequence[Scores], amount: float) -> list[int]:
    """How many positions of each array are among the `amount` smallest of all together."""
    sizes = [s.size for s in scores]
    if not sizes:
        return []
    mask = smallest(np.concatenate([s.ravel().astype(np.float32) for s in scores]), round(amount * sum(sizes)))
    return [int(part.sum()) for part in np.split(mask, np.cumsum(sizes)[:-1])]
