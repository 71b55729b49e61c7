"""Which constants of a graph are weights: what an optimizer may change without changing what the graph means.

A constant is one where *every* reader takes it as such: the kernel of a convolution, a factor of a matrix product, scale and bias of
a normalization, a table that Gather reads, an operand of Add or Mul (several values, none huge, no 0/1 mask). Reshape, Transpose,
Identity and their kin are looked through. Running statistics, bounds, epsilons, exponents and masks are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.groups.observation import Array
from onnxprune.training.program import Program, Step, uses

HUGE = 1e4
POINTWISE = {"Add", "Sub", "Mul", "Div", "Sum", "Concat", "Expand", "Tile", "Gather", "GatherElements", "GatherND"}


@dataclass(frozen=True)
class TrainedWeight:
    """is_matrix: it multiplies and sums, so it decays and is drawn anew. users: the steps that compute with it, and as which input."""

    key: str
    is_matrix: bool
    users: tuple[tuple[Step, int], ...]


def weights(program: Program) -> dict[str, TrainedWeight]:
    """By key, in the order of the file."""
    read = uses(program)
    outputs = set(program.body.outputs)
    found = {}
    for key in program.origins:
        value = program.constants[key]
        if value.dtype.name not in ("float32", "float64", "float16", "bfloat16") or not value.size or key in outputs:
            continue
        users = _users(key, read, outputs)
        if users and np.isfinite(value).all() and all(_fits(step, i, value) for step, i in users):
            is_matrix = any(i in step.function.decays for step, i in users if step.function)
            found[key] = TrainedWeight(key, is_matrix, tuple(users))
    return found


def _users(key: str, read: dict[str, list[tuple[Step, int]]], outputs: set[str]) -> list[tuple[Step, int]]:
    """Steps that compute with a constant; none where one of its readers does not take it as a weight."""
    found: list[tuple[Step, int]] = []
    for step, i in read.get(key, []):
        if step.function is None or i < 0:
            return []
        if i in step.function.trains:
            found.append((step, i))
        elif step.function.passes and i == 0:
            for output in step.outputs:
                if output in outputs:
                    return []
                behind = _users(output, read, outputs) if output in read else []
                if output in read and not behind:
                    return []
                found += behind
        elif not step.function.blocked:  # its shape may be asked for
            return []
    return found


def _fits(step: Step, i: int, value: Array) -> bool:
    if step.op not in POINTWISE:
        return True
    if value.size == 1 or np.abs(value.astype(np.float64)).max() > HUGE:
        return False
    return set(np.unique(value).tolist()) != {0.0, 1.0}
