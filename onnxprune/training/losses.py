"""What training makes small: the distance to the teacher's outputs and features, the loss against labels.

Distillation follows the kind of output (`calibrate/damage.py`), so nothing has to be named: logits by the Kullback-Leibler divergence at a
temperature T, times T² (Hinton et al., 2015), probabilities by the same without one, everything else by the mean square
difference over the variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from onnxprune.calibrate.damage import MASKED, SHARE, kind_of
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array
from onnxprune.training.functions.base import Tensor

TINY = 1e-7
LABEL_NAMES = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Distance:
    """How far one output is from the teacher's. kind: see `kind_of`; spread: the variance of the teacher's, for scale."""

    name: str
    kind: str
    spread: float

    def __call__(self, wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
        finite = torch.isfinite(wanted)
        if not bool(finite.all()):  # a class that is masked out, in both
            low = wanted[finite].min() - MASKED if bool(finite.any()) else 0.0
            wanted, found = torch.where(finite, wanted, low), torch.where(finite, found, low)
        if self.kind == "logits":
            return _logits(wanted, found, temperature)
        if self.kind == "probabilities":
            return _divergence(torch.log(wanted.clamp(TINY, 1)), torch.log(found.clamp(TINY, 1)))
        if self.kind == "bernoulli":
            return F.binary_cross_entropy(found.clamp(TINY, 1 - TINY), wanted.clamp(0, 1)) - F.binary_cross_entropy(
                wanted.clamp(TINY, 1 - TINY), wanted.clamp(0, 1)
            )
        return (wanted - found).square().mean() / self.spread


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _logits(wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
    apart = _divergence(torch.log_softmax(wanted / temperature, -1), torch.log_softmax(found / temperature, -1))
    centred = wanted - wanted.mean(-1, keepdim=True)
    error = (centred - found + found.mean(-1, keepdim=True)).square().mean()
    return temperature**2 * apart + SHARE * error / centred.square().mean().clamp_min(1e-12)


def distances(outputs: Mapping[str, Sequence[Array]]) -> list[Distance]:
    """One for every floating output of the teacher, from samples of its values."""
    found = []
    for name, values in outputs.items():
        if values[0].dtype.kind == "f" and any(v.size for v in values):
            numbers = np.concatenate([v[np.isfinite(v)] for v in values])
            spread = float(np.var(numbers, dtype=np.float64)) if numbers.size else 0.0
            found.append(Distance(name, kind_of([np.asarray(v, np.float32) for v in values]), max(spread, 1e-12)))
    return found


@dataclass(frozen=True)
class Supervised:
    """The loss of one output against one array of labels: cross entropy for classes, mean square error for values.

    output: [N, C, …] with labels [N, …] of integers (or [N, …, C]), or any shape with labels of the same shape.
    is_probability: the output went through Softmax already. is_soft: labels are the probabilities of the classes (one-hot ones, too).
    """

    output: str
    labels: str
    classes_last: bool
    is_probability: bool
    is_soft: bool = False

    def __call__(self, found: Tensor, labels: Tensor, sharpness: float = 1.0) -> Tensor:
        """Per sample, [N]. sharpness: factor on the scores of classes, the inverse of a temperature."""
        if labels.is_floating_point() and not self.is_soft:
            return (found - labels).square().flatten(1).mean(1) if found.dim() > 1 else (found - labels).square()
        scores = found.movedim(-1, 1) if self.classes_last else found
        if self.is_probability:
            scores = torch.log(scores.clamp(TINY, 1))
        wanted = labels.to(scores.dtype) if self.is_soft else labels.long()
        wanted = wanted.movedim(-1, 1) if self.is_soft and self.classes_last else wanted
        return F.cross_entropy(sharpness * scores, wanted, reduction="none").reshape(len(labels), -1).mean(1)

    def is_dense(self, labels: Array) -> bool:
        """Do they say more of a sample than which class it is? Then a mixed or shifted sample is not labelled any more."""
        return labels.ndim > 2 if self.is_soft else labels.ndim > 1 or labels.dtype.kind == "f"


def supervised(outputs: Mapping[str, Array], labels: Mapping[str, Array]) -> Supervised:
    """Which labels belong to which output, by name and shape. Raises `BadInputError` where none fit."""
    names = sorted(labels, key=lambda n: (n not in outputs, n not in LABEL_NAMES, n))
    for name in names:
        for output in [name] if name in outputs else outputs:
            array, value = labels[name], outputs[output]
            if value.dtype.kind != "f":
                continue
            kind = kind_of([np.asarray(value, np.float32)])
            is_probability = kind == "probabilities"
            if array.shape == value.shape and kind in ("logits", "probabilities") and _is_distribution(array):
                return Supervised(output, name, True, is_probability, is_soft=True)
            if array.dtype.kind == "f" and array.shape == value.shape:
                return Supervised(output, name, False, False)
            if array.dtype.kind in "iu" and value.ndim == array.ndim + 1:
                if array.shape == (value.shape[0], *value.shape[2:]):
                    return _checked(Supervised(output, name, False, is_probability), array, value.shape[1])
                if array.shape == value.shape[:-1]:
                    return _checked(Supervised(output, name, True, is_probability), array, value.shape[-1])
    shapes = ", ".join(f"'{n}' {list(a.shape)}" for n, a in labels.items()) or "none"
    raise BadInputError(
        f"No labels fit an output: there are {shapes}, and the outputs are "
        f"{', '.join(f'{n!r} {list(v.shape)}' for n, v in outputs.items())}; give integer classes of shape [N], or values "
        "of an output's own shape."
    )


def _is_distribution(labels: Array) -> bool:
    """Does every row along the last axis sum to one, and nothing lie below zero?"""
    rows = labels.astype(np.float64)
    return bool(rows.min(initial=0) >= 0 and np.allclose(rows.sum(axis=-1), 1, atol=1e-3))


def _checked(loss: Supervised, labels: Array, classes: int) -> Supervised:
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise BadInputError(
            f"Labels '{loss.labels}' reach from {int(labels.min())} to {int(labels.max())}, but output '{loss.output}' has "
            f"{classes} classes; give classes from 0 to {classes - 1}."
        )
    return loss
