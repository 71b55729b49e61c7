"""Why ONNX Runtime did not take a model, as one sentence that says what to do instead."""

from __future__ import annotations

import re

import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.model.branches import every_graph
from onnxprune.model.check import describe

UNKNOWN = re.compile(
    r"(?:Fatal error: |for )?(?P<domain>[\w.\-]+):(?P<op>[\w.\-]+)\(-?\d+\) is not a registered function/op"
)
NO_KERNEL = re.compile(r"Could not find an implementation for (?P<op>\w+)\(\d+\) node with name '(?P<name>[^']*)'")
BAD_TYPE = re.compile(r"Type 'tensor\((?P<type>\w+)\)' of input parameter \([^)]*\) of operator \((?P<op>\w+)\)")
UNREGISTERED = re.compile(r"No Op registered for (?P<op>\w+) with domain_version of (?P<opset>\d+)")
ELSEWHERE = re.compile(r"(?P<op>\w+) node .*is not compatible with any execution provider")
HALVES = ("bfloat16", "float16", "float8", "float4")
CAST = "cast the model to float32, prune that, and cast the result back"
SOURCE = "prune the file that it was made from, before it was optimized or compiled for a device"


def refusal(model: ModelProto, what: str, error: BaseException) -> str:
    """model: that was refused. what: its name in the sentence."""
    text = str(error)
    runtime = f"ONNX Runtime {ort.__version__}"
    if found := UNKNOWN.search(text):
        return _unknown(model, found["op"], found["domain"], runtime)
    if found := UNREGISTERED.search(text):
        if not onnx.defs.has(found["op"]):
            return _unknown(model, found["op"], "ai.onnx", runtime)
        return (
            f"{_named(model, found['op'])} is not in opset {found['opset']}; export the model for an opset that has it."
        )
    if found := ELSEWHERE.search(text):
        return f"{_named(model, found['op'])} runs on another device only, not in {runtime} on the CPU; {SOURCE}."
    if found := NO_KERNEL.search(text):
        return _without_kernel(model, found["op"], found["name"], runtime)
    found = BAD_TYPE.search(text)
    if found and found["type"].startswith(HALVES):
        return f"{_named(model, found['op'])} takes no {found['type']} at this opset; {CAST}."
    return f"{runtime} cannot load {what}: {first_line(error)} Give a model that it can load."


def _without_kernel(model: ModelProto, op: str, name: str, runtime: str) -> str:
    """An operator that is known, but not for these types or not on the CPU."""
    node = _node(model, op, name)
    if node is None:
        return f"{runtime} does not run {op} on the CPU; {CAST}."
    domain = "" if node.domain == "ai.onnx" else node.domain
    types = _types(model, node)
    if types:
        return f"{runtime} does not run {_named(model, op, name)} on the CPU for {' and '.join(types)}; {CAST}."
    if domain:
        return f"{runtime} does not run {_named(model, op, name)} of domain {domain} on the CPU; {SOURCE}."
    if not onnx.defs.has(op):
        return _unknown(model, op, "ai.onnx", runtime)
    return f"{runtime} does not run {_named(model, op, name)} on the CPU; {_cut(model, node)}."


def _unknown(model: ModelProto, op: str, domain: str, runtime: str) -> str:
    """The operator of an engine's plugin, or of a library of the user's."""
    own = "" if domain == "ai.onnx" else domain
    node = next((n for n in _nodes(model) if n.op_type == op and n.domain in (own, domain)), None)
    library = "" if domain == "ai.onnx" else "give the library that implements it with --custom-ops LIBRARY, or "
    return f"Operator {op} of domain {domain} is not known to {runtime}; {library}{_cut(model, node)}."


def _cut(model: ModelProto, node: NodeProto | None) -> str:
    """How to do without a node."""
    constants = {t.name for t in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    ends = [i for i in node.input if i and i not in constants] if node is not None else []
    place = f"at its inputs ({', '.join(repr(i) for i in ends[:4])})" if ends else "before it"
    return f"cut the model {place} with onnx.utils.extract_model, prune that part, and put the rest back"


def _nodes(model: ModelProto) -> list[NodeProto]:
    return [node for graph in every_graph(model.graph) for node in graph.node]


def _node(model: ModelProto, op: str, name: str = "") -> NodeProto | None:
    """A node that an error speaks of; the first of its kind where it has no name."""
    found = [n for n in _nodes(model) if n.op_type == op]
    return next((n for n in found if n.name == name), found[0] if found else None)


def _named(model: ModelProto, op: str, name: str = "") -> str:
    node = _node(model, op, name)
    return op if node is None else describe(node).replace("Node", "node", 1)


def _types(model: ModelProto, node: NodeProto) -> list[str]:
    """Element types of what a node reads, the floating ones that are not float32."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # inference is a courtesy here: it raises what it likes
        graph = model.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    known |= {t.name: t.data_type for t in graph.initializer}
    found = dict.fromkeys(known[i] for i in node.input if known.get(i))
    names = [TensorProto.DataType.Name(k).lower() for k in found]
    return [n for n in names if n.startswith((*HALVES, "double"))]


def first_line(error: BaseException) -> str:
    """The gist of a runtime error: its first line, without the status prefix."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    line = text[0].split("] : ")[-1]
    if " : " in line and line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    return line[:300].rstrip(". ") + "."
