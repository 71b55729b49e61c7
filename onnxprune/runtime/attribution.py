"""Which nodes of the file a kernel computes. ONNX Runtime fuses nodes, renames tensors and puts in nodes of its own while it loads.

    file:        Conv 'c1' -> BatchNormalization 'b' -> Add 'a' -> Relu 'r'
    what runs:   Conv 'b_nchwc' (domain com.microsoft.nchwc) -> ReorderOutput
    attributed:  Conv 'b_nchwc' computes c1, b, a and r; ReorderOutput was put in

Every node gets a name of its own before the model is loaded (`named`): ONNX Runtime keeps the names of nodes that it keeps, and often
makes those of fused ones from them. What it runs is read from the graph that it writes (`SessionOptions.optimized_model_filepath`).
There, a kernel computes what lies between its outputs and the tensors that other kernels give: tensors keep their names unless the
layout changes. A tensor of another layout is the same tensor behind its reorder, or the one that its kernel is named for, with what was
fused behind it (`_behind`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

_MARK = re.compile(r"~(\d+)~")
PUT_IN = ("ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost", "Cast", "Transpose", "Reshape")
"""Kernels that give their input in another form; without a node of the file behind them, ONNX Runtime put them in."""
INLINED = "_inlfunc_"
BEHIND = frozenset(
    "Add BatchNormalization Clip Div Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mul PRelu Relu Sigmoid Silu Softplus Sub Sum Tanh".split()
)
"""What a kernel may do with its result before it gives it."""


@dataclass(frozen=True)
class Origin:
    """A node of the file. key: that of its first output; path: of its graph (both as in `model/graph.py`). inputs, outputs: keys."""

    key: str
    op: str
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that runs.

    name: its name there. op, domain: of the operator that runs.
    nodes: keys of the nodes of the file that it computes, the main one first; empty where ONNX Runtime put it in, or nothing is known.
    beside: key of the node next to one that was put in.
    holds: it runs other kernels (If, Loop).
    """

    name: str
    op: str
    domain: str
    nodes: tuple[str, ...]
    beside: str = ""
    holds: bool = False

    @property
    def is_put_in(self) -> bool:
        return not self.nodes and self.op in PUT_IN


@dataclass
class Known:
    """The nodes of a file, by mark and by what they give and read."""

    origins: list[Origin] = field(default_factory=list)
    producers: dict[str, Origin] = field(default_factory=dict)
    consumers: dict[str, list[Origin]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    tensors: set[str] = field(default_factory=set)

    def marked(self, name: str) -> list[Origin]:
        found = (int(mark) for mark in _MARK.findall(name))
        return [self.origins[k] for k in dict.fromkeys(found) if k < len(self.origins)]


def named(proto: ModelProto) -> tuple[ModelProto, Known]:
    """A copy whose nodes have marks for names, and what they stand for."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    known = Known()
    _name(copy.graph, "", {}, known)
    return copy, known


def _name(graph: GraphProto, path: str, outer: Mapping[str, str], known: Known) -> None:
    constants = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    own = [v.name for v in graph.input] + constants + [o for n in graph.node for o in n.output if o]
    keys = {**outer, **{name: path + name for name in own}}
    known.tensors.update(path + name for name in own)
    known.constants.update(path + name for name in constants)
    for i, node in enumerate(graph.node):
        outputs = tuple(keys[o] for o in node.output if o)
        inputs = tuple(keys.get(x, x) for x in node.input if x)
        origin = Origin(outputs[0] if outputs else f"{path}#{i}", node.op_type, path, inputs, outputs)
        node.name = f"~{len(known.origins)}~"
        known.origins.append(origin)
        known.producers.update(dict.fromkeys(outputs, origin))
        for x in dict.fromkeys(inputs):
            known.consumers.setdefault(x, []).append(origin)
        bodies = list(_bodies(node))
        for name, body in bodies:
            _name(body, f"{origin.key}.{name}//", keys, known)
        if not bodies and outputs and all(x in known.constants for x in inputs) and not _draws(node):
            known.constants.update(outputs)


def _draws(node: NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Multinomial", "Bernoulli")


def _bodies(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    return ((a.name, a.g) for a in node.attribute if a.type == AttributeProto.GRAPH)


def unattributed(known: Known, name: str, op: str) -> Kernel:
    """A kernel of which only the name is known."""
    return Kernel(name, op, "", tuple(o.key for o in known.marked(name)))


# ---------------------------------------------------------------- what runs


def attributed(known: Known, graph: GraphProto) -> list[Kernel]:
    """The kernels of a graph as it runs, those of subgraphs before the one that holds them, with the nodes that they compute."""
    alone = {o.key for node in _every_node(graph) for o in known.marked(node.name)}
    return list(_attributed(known, graph, "", {}, alone))


def _every_node(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for _, body in _bodies(node):
            yield from _every_node(body)


def _attributed(
    known: Known, graph: GraphProto, path: str, outer: Mapping[str, str], alone: Set[str]
) -> Iterator[Kernel]:
    anchors = _anchors(known, graph, path, outer, alone)
    given = {anchors[o]: node for node in graph.node for o in node.output if o in anchors}
    ends = set(given) | set(outer.values()) | {t for o in known.origins if o.key in alone for t in o.outputs}
    kernels: dict[int, Kernel] = {}
    for k, node in enumerate(graph.node):
        bodies = list(_bodies(node))
        own = known.marked(node.name)
        for name, body in bodies:
            inside = f"{own[0].key}.{name}//" if own else ""
            yield from _attributed(known, body, inside, anchors, alone)
        goals = [anchors[o] for o in node.output if o in anchors and not (_is_put_in(known, node))]
        nodes = _between(known, goals, ends, own)
        kernels[k] = Kernel(node.name, node.op_type, node.domain, _main_first(node, nodes, own), holds=bool(bodies))
    makers = {o: k for k, node in enumerate(graph.node) for o in node.output if o}
    for node in reversed(
        graph.node
    ):  # an operator that is a function runs as several kernels: parts of the one that gives its output
        whole = next((kernels[makers[o]].nodes[:1] for o in node.output if o in makers), ())
        for x in node.input:
            if INLINED in x and x in makers and not kernels[makers[x]].nodes:
                kernels[makers[x]] = replace(kernels[makers[x]], nodes=whole)
    for k, kernel in kernels.items():
        yield kernel if kernel.nodes else _beside(kernel, k, graph, makers, kernels)


def _anchors(known: Known, graph: GraphProto, path: str, outer: Mapping[str, str], alone: Set[str]) -> dict[str, str]:
    """By tensor of the graph that runs, the tensor of the file that it holds, in whatever layout."""
    anchors = dict(outer)
    names = [v.name for v in graph.input] + [x for n in graph.node for x in (*n.input, *n.output) if x]
    anchors.update({x: path + x for x in names if path + x in known.tensors})
    movers = [n for n in graph.node if _is_put_in(known, n) and n.input and n.output]
    for node in (*reversed(movers), *movers):
        for a, b in ((node.output[0], node.input[0]), (node.input[0], node.output[0])):
            if a in anchors and b not in anchors:
                anchors[b] = anchors[a]
    for node in graph.node:
        if _is_put_in(known, node):
            if node.input and node.input[0] in anchors and node.output:
                anchors.setdefault(node.output[0], anchors[node.input[0]])
            continue
        if not node.output or any(o in anchors for o in node.output):
            continue
        start = _start(known, node, path)
        end = _behind(known, start, node, anchors, alone) if start else _onward(known, node, anchors, alone)
        if end:
            anchors[node.output[0]] = end
    return anchors


def _is_put_in(known: Known, node: NodeProto) -> bool:
    return node.op_type in PUT_IN and not known.marked(node.name)


def _start(known: Known, node: NodeProto, path: str) -> str:
    """The tensor that a node is named for: `NAME_nchwc`, `NAME_nchwc_token_2`; or what the node gives whose mark it has."""
    own = known.marked(node.name)
    if own and own[0].outputs:
        return own[-1].outputs[0]
    name = str(node.name)
    while name:
        if path + name in known.tensors:
            return path + name
        name = name[: max(name.rfind("_"), name.rfind("/"), 0)]
    return ""


def _behind(known: Known, tensor: str, node: NodeProto, anchors: Mapping[str, str], alone: Set[str]) -> str:
    """The tensor that a kernel gives which computes `tensor` first: what reads it alone and runs nowhere else was fused behind it."""
    read, given = {anchors.get(x, "") for x in node.input}, set(anchors.values())
    activates = any(a.name == "activation" for a in node.attribute)
    while True:
        readers = known.consumers.get(tensor, [])
        if len(readers) != 1 or readers[0].op not in BEHIND or readers[0].key in alone or len(readers[0].outputs) != 1:
            return tensor
        others = {x for x in readers[0].inputs if x != tensor} - known.constants
        if not others <= read or readers[0].outputs[0] in given or (len(readers[0].inputs) == 1 and not activates):
            return tensor
        tensor = readers[0].outputs[0]


def _onward(known: Known, node: NodeProto, anchors: Mapping[str, str], alone: Set[str]) -> str:
    """The tensor that a nameless kernel gives, such as a Gelu: where all that follows from its inputs element by element meets again."""
    read = {anchors[x] for x in node.input if x in anchors}
    given = set(anchors.values())
    inside = set(read)
    last: list[str] = []
    waiting = [o for x in read for o in known.consumers.get(x, [])]
    while waiting:
        origin = waiting.pop(0)
        whole = {x for x in origin.inputs if x not in known.constants} <= inside
        if origin.op in BEHIND and origin.key not in alone and len(origin.outputs) == 1 and whole:
            made = origin.outputs[0]
            if made not in given and made not in inside:
                inside.add(made)
                last.append(made)
                waiting += known.consumers.get(made, [])
    left = [
        t
        for t in last
        if any(not set(o.outputs) & inside for o in known.consumers.get(t, [])) or t not in known.consumers
    ]
    return left[0] if len(left) == 1 else ""


def _between(known: Known, goals: Sequence[str], ends: Set[str], own: Sequence[Origin]) -> list[Origin]:
    """The nodes on the way from what other kernels give to `goals`, in the order of the file; and those that the kernel is named for."""
    free = {t for o in own for t in o.outputs} | set(goals)
    found = {o.key: o for o in own}
    waiting = list(goals)
    seen: set[str] = set()
    while waiting:
        tensor = waiting.pop()
        origin = known.producers.get(tensor)
        if tensor in seen or origin is None or tensor in known.constants or (tensor in ends and tensor not in free):
            continue
        seen.add(tensor)
        found[origin.key] = origin
        if origin.op not in ("Shape", "Size"):
            waiting += [x for x in origin.inputs if x not in free or x not in ends or origin in own]
    order = {o.key: k for k, o in enumerate(known.origins)}
    return sorted(found.values(), key=lambda o: order[o.key])


def _main_first(node: NodeProto, nodes: Sequence[Origin], own: Sequence[Origin]) -> tuple[str, ...]:
    """The node that the kernel is about: of its operator, or one that its operator is named for, or that it is named for, or the last."""
    if not nodes:
        return ()
    same = [o for o in nodes if o.op == node.op_type]
    alike = [o for o in nodes if len(o.op) > 3 and o.op in node.op_type]
    main = (same or alike or list(own) or [nodes[-1]])[0]
    return (main.key, *(o.key for o in nodes if o is not main))


def _beside(
    kernel: Kernel, at: int, graph: GraphProto, makers: Mapping[str, int], kernels: Mapping[int, Kernel]
) -> Kernel:
    """With the node that it brings its input from, or else that it brings it to."""
    node = graph.node[at]
    before = [kernels[makers[x]].nodes for x in node.input if x in makers]
    after = [kernels[k].nodes for k, n in enumerate(graph.node) if set(node.output) & set(n.input)]
    near = [
        n[0] for n in ([*after, *before] if node.op_type.endswith(("Input", "FromHost")) else [*before, *after]) if n
    ]
    return replace(kernel, beside=near[0] if near else "")
