"""What tensors depend on: on no input at all, or on the step of a loop.

Bodies of loops are observed in their first step: what may be something else in the next one is no constant.
"""

from __future__ import annotations

from dataclasses import replace

from onnxprune import ops
from onnxprune.groups.observation import Observation
from onnxprune.model.graph import Graph, Node, View


def fixed_tensors(graph: View) -> set[str]:
    """Keys of tensors that depend on no input: constants, and what is computed of nothing else."""
    fixed = set(graph.constants)
    for node in graph.graph.walk():
        if (
            node.inputs
            and not node.subgraphs
            and all(k in fixed for k in node.inputs if k)
            and not ops.rule_for(node.op, node.domain).random
        ):
            fixed.update(k for k in node.outputs if k)
    return fixed


def of_every_step(observation: Observation, graph: Graph) -> Observation:
    """The observation, in which no value that may differ from step to step counts as the same in both feeds."""
    differs: set[str] = set()
    _walk(graph, differs)
    return replace(observation, other_values={k: v for k, v in observation.other_values.items() if k not in differs})


def _walk(graph: Graph, differs: set[str]) -> None:
    """Add the keys of what depends on the step, other than by its shape, to `differs`."""
    for node in graph.nodes:
        read = set(node.inputs)
        for body in node.subgraphs.values():
            differs |= _stepped(node, body)
            _walk(body, differs)
            read |= {k for inner in body.walk() for k in inner.inputs if not k.startswith(body.path)}
        if read & differs and not ops.rule_for(node.op, node.domain).carries_shape:
            differs.update(k for k in node.outputs if k)


def _stepped(node: Node, body: Graph) -> set[str]:
    """Inputs of a body that may have another value in its next step: all but those that it hands on as they are."""
    scanned = node.attrs.get("num_scan_inputs")
    if node.op not in ("Loop", "Scan"):  # what feeds it is not known
        return set(body.inputs)
    if scanned is None:  # of a Loop: iteration number and condition come first, the condition comes out first
        carried = zip(body.inputs[2:], body.outputs[1:], strict=False)
    else:
        carried = zip(body.inputs[: len(body.inputs) - int(scanned)], body.outputs, strict=False)
    return set(body.inputs) - {before for before, after in carried if before == after}
