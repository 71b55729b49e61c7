"""Which tensors depend on what the inputs hold, and not on how large they are alone; and whose sizes do.

`Shape(x)` depends on sizes: it is the same for all inputs of one size, unless x is as long as values say (NonZero, a Range to a sum).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import NodeProto

from onnxprune.calibrate.stepwise import read_by
from onnxprune.ops import rule_for


def dependent(nodes: Sequence[NodeProto], is_fixed: Callable[[str], bool]) -> tuple[set[str], dict[str, str]]:
    """Tensors that depend on values, inputs and random numbers among them; those whose size does, with the node that decides it.

    nodes: in topological order. is_fixed: is a tensor a constant?
    """
    made = {o for node in nodes for o in node.output}
    values = {n for node in nodes for n in read_by(node) if n not in made and not is_fixed(n)}
    sizes: dict[str, str] = {}
    for node in nodes:
        reads = sorted(read_by(node))
        outputs = [o for o in node.output if o]
        rule = rule_for(node.op_type, node.domain)
        if any((n in sizes) if rule.carries_shape else (n in values) for n in reads) or rule.random:
            values.update(outputs)
        if rule.carries_shape:
            continue
        decided = [i for i, n in enumerate(node.input) if n in values and rule.decides_size(i)]
        found = f"{node.op_type} '{node.name or outputs[0]}'" if decided else ""
        sized_by = node.input[:1] if rule.places else reads  # what is written somewhere changes no size
        found = found or next((sizes[n] for n in sized_by if n in sizes), "")
        if found:
            sizes.update(dict.fromkeys(outputs, found))
    return values, sizes
