"""How far two models' outputs are apart, how far they may be, and the verdict."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.errors import VerificationError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.model.branches import subgraphs
from onnxprune.proof.masked import masked_keys
from onnxprune.proof.verdict import Verdict

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
    graphs = [graph]
    for each in graphs:
        if any(name in stored for node in each.node if node.op_type != "Cast" for name in node.input):
            return True
        graphs += [sub for node in each.node for _, sub in subgraphs(node)]
    return False


def verdict(
    analysis: Analysis, removed: Bools, worst: float, noise: float | None = None, deviation: float = np.inf
) -> Verdict:
    """Judge an error; `noise` was measured only if the error was above the plain tolerance."""
    tolerance = tolerance_of(analysis.model.proto, noise or 0.0, deviation)
    hit = [g for g in analysis.groups if removed[g.classes].any()]
    if not worst <= tolerance:
        raise VerificationError(
            f"The pruned model differs from the masked original by {worst:.2g} of the output's scale (allowed {tolerance:.0e});"
            " nothing was written. Please report this model."
        )
    return Verdict(worst, tolerance, all(g.exact for g in hit), len(masked_keys(analysis, removed)), noise)


def deviation(reference: list[Array], result: list[Array]) -> float:
    """Largest absolute difference of finite values."""
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size and a.shape == b.shape:
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
            worst = max(worst, float(np.nanmax(np.where(np.isfinite(difference), difference, np.nan), initial=0.0)))
    return worst


def is_vacuous(reference: list[Array]) -> bool:
    """True when no output holds a finite number: nothing could be compared."""
    return not any(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" and np.isfinite(a).any() for a in reference)


def error(reference: list[Array], result: list[Array]) -> float:
    """Largest deviation relative to the output's own scale; NaN and infinity must be where they were."""
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub" or a.size == 0:
            continue
        if a.shape != b.shape:
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if (finite != np.isfinite(y)).any():
            return float("inf")
        if finite.any():
            scale = np.abs(x[finite]).max()
            worst = max(worst, float(np.abs(x[finite] - y[finite]).max() / (scale + 1e-30)))
    return worst
