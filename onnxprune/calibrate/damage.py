"""How far a model's outputs are from the original's, as one number that is 0 where they are equal.

Per float output: the Kullback-Leibler divergence where it holds probabilities (rows that sum to one) or, with two axes,
logits; of Bernoulli probabilities where all values lie in [0, 1]; else the mean square difference over the variance, slice by
slice along the shortest axis behind the batch (coordinates and scores of a detector have scales of their own). Of labels (integers
and booleans), the share that differ. Summed over outputs.
A divergence says nothing where the model is sure of itself on every sample, so a little of the mean square difference of the
logits, over their variance, is added (`SHARE`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array

Outputs = Sequence[Sequence[Array]]
Metric = Callable[[Outputs, Outputs], float]
TINY = 1e-7
SHARE = 0.02
MASKED = 30.0  # so far below the lowest logit is one that was minus infinity
METRICS = ("kl", "cosine", "top1")


def disagreement(reference: Outputs, outputs: Outputs) -> float:
    """Share of positions whose largest entry along the last axis is another one; over the outputs with such an axis. All positions of an
    output whose size is another.
    """
    if not has_classes(reference):
        raise BadInputError("--metric top1 needs an output with classes along its last axis; use kl or cosine.")
    shares = []
    for k in range(len(reference[0])):
        wanted = [np.asarray(r[k]) for r in reference]
        if _is_label(wanted[0]):
            shares.append(_labels(wanted, [np.asarray(o[k]) for o in outputs]))
        elif _has_scores(wanted[0]):
            different = [_other_classes(w, np.asarray(o[k])) for w, o in zip(wanted, outputs, strict=True)]
            shares.append(float(np.mean(np.concatenate([d.ravel() for d in different]))))
    return max(shares)


def has_classes(reference: Outputs) -> bool:
    """Does some output hold labels, or scores of classes along its last axis? reference: one sample at least."""
    return any(_is_label(x) or _has_scores(x) for x in map(np.asarray, reference[0]))


def _is_label(x: Array) -> bool:
    return x.dtype.kind in "iub" and x.size > 0


def _has_scores(x: Array) -> bool:
    return x.dtype.kind == "f" and x.ndim > 1 and x.shape[-1] > 1


def _other_classes(w: Array, f: Array) -> Array:
    return np.asarray(w.argmax(axis=-1) != f.argmax(axis=-1)) if w.shape == f.shape else np.ones(w.shape[:-1], bool)


def angle(reference: Outputs, outputs: Outputs) -> float:
    """1 - cosine similarity, the worst over floating outputs of the mean over samples; infinite where a size is another."""
    found = []
    for k in range(len(reference[0])):
        if np.asarray(reference[0][k]).dtype.kind != "f":
            continue
        each = []
        for r, o in zip(reference, outputs, strict=True):
            a, b = (_filled(np.asarray(x[k], np.float64), 0.0) for x in (r, o))
            if a.shape != b.shape:
                return float("inf")
            a, b = a.reshape(max(len(a), 1) if a.ndim else 1, -1), b.reshape(max(len(b), 1) if b.ndim else 1, -1)
            norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            each.append(1 - (a * b).sum(axis=1) / np.maximum(norm, 1e-30))
        found.append(float(np.concatenate(each).mean()))
    return max(found, default=0.0)


def divergence(reference: Outputs, outputs: Outputs) -> float:
    """reference, outputs: per sample, the list of the model's outputs."""
    total = 0.0
    for k in range(len(reference[0])):
        wanted, found = [np.asarray(r[k]) for r in reference], [np.asarray(o[k]) for o in outputs]
        if any(w.size for w in wanted):
            total += _one(wanted, found) if wanted[0].dtype.kind == "f" else _labels(wanted, found)
    return float(total)


def _labels(wanted: list[Array], found: list[Array]) -> float:
    """Share of positions that differ."""
    if any(w.shape != f.shape for w, f in zip(wanted, found, strict=True)):
        return float("inf")
    return float(np.mean(np.concatenate([(w != f).ravel() for w, f in zip(wanted, found, strict=True)])))


def _one(wanted: list[Array], found: list[Array]) -> float:
    weights = [max(w.size, 1) for w in wanted]
    if any(w.shape != f.shape for w, f in zip(wanted, found, strict=True)):
        return float("inf")
    finite = [np.isfinite(w) for w in wanted]
    if not all(_same_elsewhere(w, f) for w, f in zip(wanted, found, strict=True)):
        return float("inf")
    numbers = np.concatenate([w[m] for w, m in zip(wanted, finite, strict=True)])
    if numbers.size < sum(w.size for w in wanted):
        if not numbers.size:
            return 0.0
        low, mean = float(numbers.min()) - MASKED, float(numbers.mean())
        fill = low if kind_of([_filled(w, low) for w in wanted]) == "logits" else mean
        wanted, found = ([_filled(x, fill) for x in xs] for xs in (wanted, found))
    kind = kind_of(wanted)
    if kind == "values":
        return _relative(wanted, found)
    each = [_KINDS[kind](w.astype(np.float64), f.astype(np.float64)) for w, f in zip(wanted, found, strict=True)]
    logits = [[_LOGITS[kind](x.astype(np.float64)) for x in xs] for xs in (wanted, found)]
    a, b = (np.concatenate([x[m] for x, m in zip(xs, finite, strict=True)]) for xs in logits)
    spread = float(np.square(a - b).mean() / max(float(a.var()), 1e-12))
    apart = np.maximum(0.0, np.average(each, weights=weights))  # rounding may leave less; NaN stays NaN
    return float(apart) + SHARE * spread


def _same_elsewhere(w: Array, f: Array) -> bool:
    """Are infinities and NaN the same, at the same positions?"""
    a, b = np.isfinite(w), np.isfinite(f)
    return bool((a == b).all() and (a.all() or np.array_equal(w[~a], f[~b], equal_nan=True)))


def _filled(x: Array, value: float) -> Array:
    """With a number in place of infinities and NaN, which are where they were: a class that is masked out is as good as absent."""
    return np.asarray(np.where(np.isfinite(x), x, np.asarray(value, x.dtype)))


def kind_of(wanted: Sequence[Array]) -> str:
    """`probabilities`, `bernoulli`, `logits` or `values`, see above."""
    if all(w.size == 0 or (w.min() >= -1e-6 and w.max() <= 1 + 1e-5) for w in wanted):
        rows = [w for w in wanted if w.ndim > 1 and w.shape[-1] > 1]
        if len(rows) == len(wanted) and all(np.allclose(w.sum(axis=-1), 1, atol=1e-3) for w in rows):
            return "probabilities"
        return "bernoulli"
    if all(w.ndim == 2 and w.shape[1] > 1 for w in wanted):
        return "logits"
    return "values"


def log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def _logits(w: Array, f: Array) -> float:
    p, q = log_softmax(w), log_softmax(f)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _probabilities(w: Array, f: Array) -> float:
    p, q = np.clip(w, TINY, 1), np.clip(f, TINY, 1)
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def _bernoulli(w: Array, f: Array) -> float:
    p, q = np.clip(w, TINY, 1 - TINY), np.clip(f, TINY, 1 - TINY)
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


def _centred(x: Array) -> Array:
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def _log(p: Array) -> Array:
    return _centred(np.log(np.clip(p, 1e-20, 1)))


def _logit(p: Array) -> Array:
    p = np.clip(p, TINY, 1 - TINY)
    return np.asarray(np.log(p / (1 - p)))


def _relative(wanted: list[Array], found: list[Array]) -> float:
    inner = wanted[0].shape[1:]
    if len({w.shape[1:] for w in wanted}) > 1 or len(inner) < 2:
        w, f = np.concatenate([x.ravel() for x in wanted]), np.concatenate([x.ravel() for x in found])
        return float(np.square(w - f, dtype=np.float64).mean() / max(float(w.var(dtype=np.float64)), 1e-12))
    axis = 1 + int(np.argmin(inner))
    w, f = np.concatenate(wanted).astype(np.float64), np.concatenate(found).astype(np.float64)
    others = tuple(a for a in range(w.ndim) if a != axis)
    variance = w.var(axis=others)
    floor = 1e-6 * float(variance.max(initial=0.0)) + 1e-12
    return float((np.square(w - f).mean(axis=others) / np.maximum(variance, floor)).mean())


_LOGITS = {"logits": _centred, "probabilities": _log, "bernoulli": _logit}
_KINDS = {"logits": _logits, "probabilities": _probabilities, "bernoulli": _bernoulli}


NAMED: dict[str, Metric] = {"kl": divergence, "cosine": angle, "top1": disagreement}
