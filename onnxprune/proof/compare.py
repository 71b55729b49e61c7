"""How far two models' outputs are apart, how far they may be, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import VerificationError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.model.branches import every_graph
from onnxprune.proof.masked import masked_keys
from onnxprune.proof.verdict import Verdict
from onnxprune.runtime.values import TEXTS, is_comparable, leaves

TOLERANCE = 1e-4
NOISY = 1e-3
HALF = 2e-2
STEP = 1e-6


def tolerance_of(model: onnx.ModelProto, noise: float, deviation: float = np.inf) -> float:
    """1e-4; up to 1e-3 where the unpruned model is that noisy itself; 2e-2 for models with 16-bit floats.

    Outputs of a saturated sigmoid (scale 1e-6, steps of 6e-8) have no finer scale of their own: an absolute deviation within
    1e-6 passes there if the unpruned model deviates as much from itself.
    """
    if deviation <= STEP and noise > TOLERANCE:
        return 10 * noise
    half = _is_half(model.graph)
    return max(HALF if half else TOLERANCE, min(NOISY, 10 * noise))


def _is_half(graph: onnx.GraphProto) -> bool:
    """Does it compute with 16-bit floats? Those that are only stored, and read by a Cast, do not count."""
    stored = {t.name for t in graph.initializer if t.data_type in (10, 16)}
    nodes = (node for each in every_graph(graph) for node in each.node if node.op_type != "Cast")
    return any(name in stored for node in nodes for name in node.input)


def verdict(
    analysis: Analysis,
    removed: Bools,
    worst: float,
    noise: float | None = None,
    deviation: float = np.inf,
    silent: Set[str] = frozenset(),
) -> Verdict:
    """Judge an error; `noise` was measured only if the error was above the plain tolerance. silent: outputs that were not compared."""
    tolerance = tolerance_of(analysis.model.proto, noise or 0.0, deviation)
    hit = [g for g in analysis.groups if removed[g.classes].any()]
    if not worst <= tolerance:
        raise VerificationError(
            f"The pruned model differs from the masked original by {worst:.2g} of the output's scale (allowed {tolerance:.0e});"
            " nothing was written. Please report this model."
        )
    masked = len(masked_keys(analysis, removed))
    return Verdict(worst, tolerance, all(g.exact for g in hit), masked, noise, tuple(sorted(silent)))


def deviation(reference: Sequence[Any], result: Sequence[Any]) -> float:
    """Largest absolute difference of finite values."""
    worst = 0.0
    for a, b in _pairs(reference, result):
        if a.dtype.kind in "fc" and a.size and a.shape == b.shape:
            finite = np.isfinite(a) & np.isfinite(b)
            difference = np.abs(a[finite].astype(np.complex128) - b[finite].astype(np.complex128))
            worst = max(worst, float(difference.max(initial=0.0)))
    return worst


def is_vacuous(reference: Sequence[Any]) -> bool:
    """True when no output holds a finite number or a text: nothing could be compared."""
    found = [x for value in reference for x in leaves(value) if is_comparable(x)]
    return not any(x.size and (x.dtype.kind in TEXTS or np.isfinite(x).any()) for x in found)


def not_compared(reference: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Outputs of which nothing was compared: of a type that has no values here, or empty."""
    found = zip(names, reference, strict=True)
    return [name for name, value in found if not any(is_comparable(x) and x.size for x in leaves(value))]


def error(reference: Sequence[Any], result: Sequence[Any]) -> float:
    """Largest deviation relative to the output's own scale; NaN and infinity must be where they were, texts and lengths the same."""
    worst = 0.0
    for value, other in zip(reference, result, strict=True):
        worst = max(worst, _error(list(leaves(value)), list(leaves(other))))
    return worst


def _error(reference: list[Any], result: list[Any]) -> float:
    if len(reference) != len(result):
        return float("inf")
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        if not is_comparable(a) or not is_comparable(b):
            if type(a) is not type(b):
                return float("inf")
            continue
        if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
            return float("inf")
        if a.dtype.kind in TEXTS:
            if (a != b).any():
                return float("inf")
            continue
        worst = max(worst, _relative(a, b))
    return worst


def _relative(a: Array, b: Array) -> float:
    kind: type = np.complex128 if a.dtype.kind == "c" else np.float64
    x: Array = a.astype(kind)
    y: Array = b.astype(kind)
    finite = np.isfinite(x)
    if (finite != np.isfinite(y)).any() or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = np.abs(x[finite]).max()
    return float(np.abs(x[finite] - y[finite]).max() / (scale + 1e-30))


def _pairs(reference: Sequence[Any], result: Sequence[Any]) -> Iterator[tuple[Array, Array]]:
    for value, other in zip(reference, result, strict=True):
        for a, b in zip(leaves(value), leaves(other), strict=False):
            if is_comparable(a) and is_comparable(b):
                yield a, b
