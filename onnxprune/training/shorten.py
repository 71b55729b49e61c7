"""What need not run at every step: exporters compute amounts and shapes from constants, and pad before they convolve.

    left, values = folded(steps, known, call)      # what follows from constants alone is computed once
    left = padding(left, values, outputs)          # Pad by zeros -> Conv is a Conv that pads

The padding of an exported EfficientNet is Constant, ConstantOfShape, Concat, Reshape, Slice, Transpose, Reshape, Cast and Pad: here an
attribute of the next convolution, and no copy of the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from onnxprune.training.functions import FUNCTIONS
from onnxprune.training.functions.base import Call
from onnxprune.training.functions.movement import amounts
from onnxprune.training.program import Step

LARGE = 1 << 20  # values that are computed again rather than held


def folded(
    steps: Sequence[Step], known: Mapping[str, Any], call: Callable[[Step, dict[str, Any]], Any]
) -> tuple[list[Step], dict[str, Any]]:
    """The steps that are left, and all that is known then. known: constants that nobody trains.

    call: what a step computes from these; None where it has no function.
    """
    values = dict(known)
    left = []
    for step in steps:
        fits = step.function is not None and step.inputs and not step.captured
        results = call(step, values) if fits and all(not k or k in values for k in step.inputs) else None
        if results is None or sum(r.numel() for r in results if isinstance(r, torch.Tensor)) > LARGE:
            left.append(step)
        else:
            values.update((key, r) for key, r in zip(step.outputs, results, strict=False) if key)
    return left, values


def padding(steps: Sequence[Step], values: Mapping[str, Any], outputs: Container[str]) -> list[Step]:
    """Each convolution that alone reads what was padded by zeros, alike on both sides, does that itself. outputs: of the model."""
    reads = Counter(k for s in steps for k in s.reads)
    pads = {s.outputs[0]: s for s in steps if s.function is FUNCTIONS["Pad"]}
    gone: set[str] = set()
    found = []
    for step in steps:
        source = pads.get(step.inputs[0]) if step.function is FUNCTIONS["Conv"] else None
        if source is not None and reads[step.inputs[0]] == 1 and step.inputs[0] not in outputs:
            wider = _padded(source, step, values)
            if wider is not None:
                gone.add(source.key)
                step = wider
        found.append(step)
    return [s for s in found if s.key not in gone]


def _padded(source: Step, conv: Step, values: Mapping[str, Any]) -> Step | None:
    """The convolution of what `source` pads, where it can pad as much."""
    own, strides = conv.attrs.get("pads"), conv.attrs.get("kernel_shape") or conv.attrs.get("strides")
    rank = len(own) // 2 if own else len(strides or ())
    fixed = [k for k in source.inputs[1:] if k]
    if not rank or not all(k in values for k in fixed) or conv.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    call = Call((None, *(values[k] if k else None for k in source.inputs[1:])), source.attrs, source.opset, 1)
    before, after, value = amounts(call, rank + 2)
    both = [before.get(a, 0) for a in range(rank + 2)]
    if source.attrs.get("mode", "constant") != "constant" or value != 0 or min(both) < 0 or any(both[:2]):
        return None
    if both != [after.get(a, 0) for a in range(rank + 2)]:
        return None
    more = [a + b for a, b in zip(own or [0] * 2 * rank, both[2:] * 2, strict=True)]
    return replace(conv, inputs=(source.inputs[0], *conv.inputs[1:]), attrs=conv.attrs | {"pads": more})
