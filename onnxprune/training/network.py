"""A graph that PyTorch evaluates node by node, with its weights as parameters.

    network = Network(load("model.onnx"))
    logits = network({"input": torch.ones(1, 3, 32, 32)})["logits"]      # equal to ONNX Runtime's, see check.py

Everything runs eagerly and in the file's order, except for what follows from constants alone (`shorten.py`); values are let go after
their last reader. Every floating type is computed in float32. An operator without a function runs alone in ONNX Runtime: the outputs are
right, but no gradient passes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.calibrate.stepwise import declared
from onnxprune.errors import BadInputError, UnsupportedModelError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import shell
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.runtime import Session
from onnxprune.training.functions.base import Call, Tensor, Unsupported
from onnxprune.training.program import Body, Program, Step, compile, uses, written
from onnxprune.training.shorten import folded, padding
from onnxprune.training.weights import TrainedWeight, weights

Values = dict[str, Any]
Plan = tuple[tuple[Step, ...], list[list[str]]]  # steps, and keys that nobody reads after each


@dataclass(frozen=True)
class Frozen:
    """A weight that gets no gradient, and the nodes that stop it."""

    key: str
    nodes: tuple[str, ...]


class Network:
    """parameters: the weights, by key, as leaf tensors. `precision`: of all floating values (float64 to check gradients)."""

    def __init__(self, model: LoadedModel, precision: Any = torch.float32) -> None:
        self.program: Program = compile(model)
        self.precision = precision
        self.compared: tuple[str, ...] = ()  # tensors inside that are learned from, beside outputs
        self.weights: dict[str, TrainedWeight] = weights(self.program)
        self.constants: Values = {k: self.tensor(v) for k, v in self.program.constants.items()}
        self.parameters: dict[str, Tensor] = {k: self.constants[k].clone().requires_grad_() for k in self.weights}
        self.opaque: dict[str, Step] = {}
        self._sessions: dict[str, Session] = {}
        self._stored = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in self.program.constants.items()}
        self._attrs = {id(s): self._tensors(s.attrs) for s in self.program.walk()}
        self._types: dict[str, int] | None = None
        whole = self.program.body.steps
        self._whole = whole, _last_reads(whole)
        self._short, self._made = self._shortened()

    def __call__(self, feeds: Mapping[str, Any], also: Iterable[str] = (), part: Plan | None = None) -> Values:
        """Outputs, and the values of the keys `also`, by key. feeds: also values that stand for what a node at the top would give.

        part: run these steps only (`part`), and give `also` alone.
        """
        given = {k: self.tensor(v) if isinstance(v, np.ndarray) else v for k, v in feeds.items()}
        values: Values = {**self.constants, **self.parameters, **given}
        wanted = {*also} if part else {*self.program.body.outputs, *also}
        steps, last = part or (self._short if self._made.issuperset(wanted) else self._whole)
        for step, gone in zip(steps, last, strict=True):
            if not all(key in given for key in step.outputs):
                self._run(step, values)
                values |= {key: given[key] for key in step.outputs if key in given}
            for key in gone:
                if key not in wanted:
                    values.pop(key, None)
        return {key: values[key] for key in wanted}

    def part(self, known: Container[str], wanted: Iterable[str]) -> Plan:
        """The steps that lead to `wanted` from the inputs and the values of `known`."""
        need, left = {key for key in wanted if key not in known}, list[Step]()
        steps = self._short[0] if self._made.issuperset(need) else self._whole[0]
        for step in reversed(steps):
            if not need.isdisjoint(step.outputs):
                left.append(step)
                need.update(k for k in step.reads if k not in known)
        left.reverse()
        return tuple(left), _last_reads(left)

    def visit(self, feeds: Feeds, after: Callable[[Step, Values], bool]) -> None:
        """Run once, and every step at the top again whose `after`, called with all values so far, changed its parameters."""
        values: Values = {**self.constants, **self.parameters, **{k: self.tensor(v) for k, v in feeds.items()}}
        for step in self.program.body.steps:
            self._run(step, values)
            if after(step, values):
                self._run(step, values)

    def bytes(self, feeds: Feeds) -> int:
        """An upper bound of what all intermediate results of these feeds take."""
        keys = [k for s in self._short[0] for k in s.outputs if k]
        with torch.no_grad():
            found = self(feeds, keys)
        return sum(v.numel() * v.element_size() for v in found.values() if isinstance(v, torch.Tensor))

    def tensor(self, array: Array) -> Any:
        """A tensor of the type that this network computes in; text stays as it is."""
        if array.dtype.kind in "OSU":
            return array
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            exact = np.float64 if self.precision == torch.float64 else np.float32
            return torch.from_numpy(np.array(array, exact, order="C")).to(self.precision)
        wide = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(array.dtype.name)
        if array.dtype.kind not in "biu":  # packed or other rare types
            wide = np.int32 if "int" in array.dtype.name else None
            if wide is None:
                return array
        return torch.from_numpy(np.array(array, dtype=wide or array.dtype, copy=True, order="C"))

    def values(self) -> dict[str, Array]:
        """The parameters as arrays."""
        return self.values_of(self.parameters)

    def values_of(self, keys: Iterable[str]) -> dict[str, Array]:
        """Some of them."""
        return {k: self.parameters[k].detach().numpy().copy() for k in keys}

    def load(self, values: dict[str, Array]) -> None:
        """Set parameters."""
        with torch.no_grad():
            for key, value in values.items():
                self.parameters[key].copy_(self.tensor(value))

    def leave(self, keys: Iterable[str]) -> None:
        """These weights are constants from here on."""
        for key in keys:
            del self.weights[key], self.parameters[key]

    def changed(self) -> dict[tuple[str, int], Array]:
        """What training changed: by (node key, input), for every node that reads it."""
        readers, found = uses(self.program), dict[tuple[str, int], Array]()
        for key, parameter in self.parameters.items():
            old = self.program.constants[key]
            value = parameter.detach().numpy().astype(old.dtype)
            if not torch.equal(parameter.detach(), self.constants[key]) and not np.array_equal(value, old):
                found |= {(step.key, i): value for step, i in readers[key]}
        return found

    def export(self) -> ModelProto:
        """The model with the parameters' values, everything else as it was."""
        return written(self.program, self.values())

    def frozen(self) -> list[Frozen]:
        """Weights that no gradient reaches. Run the network once before: what cannot be differentiated shows then."""
        reached = _reached(self.program.body, {*self.program.body.outputs, *self.compared}, self.opaque)
        blockers = [s for s in self.program.walk() if s.key in self.opaque]
        found = []
        for key, weight in self.weights.items():
            if key not in reached:
                stops = tuple(dict.fromkeys(f"{s.op} '{s.node.name or s.key}'" for s in blockers))
                found.append(Frozen(key, stops or tuple(f"{s.op} '{s.key}'" for s, _ in weight.users)))
        return found

    def _shortened(self) -> tuple[Plan, set[str]]:
        """The steps that need to run when weights change, and all that is known after them; `constants` then holds the rest."""
        program = self.program
        known = {k: v for k, v in self.constants.items() if k not in self.parameters}
        with torch.no_grad():
            left, values = folded(program.body.steps, known, self._call)
        self.constants |= values
        steps = tuple(padding(left, values, {*program.body.outputs}))
        self._attrs |= {id(s): self._tensors(s.attrs) for s in steps if id(s) not in self._attrs}
        return (steps, _last_reads(steps)), {*self.constants, *program.inputs, *(k for s in steps for k in s.outputs)}

    # ------------------------------------------------------------ one step

    def _run(self, step: Step, values: Values) -> None:
        if step.branches:
            branch = step.branches["then_branch" if bool(values[step.inputs[0]]) else "else_branch"]
            for inner in branch.steps:
                self._run(inner, values)
            values.update((o, values[k]) for o, k in zip(step.outputs, branch.outputs, strict=False) if o)
            return
        results = None
        if step.function is not None and step.key not in self.opaque:
            results = self._call(step, values)
        if results is None:
            self.opaque[step.key] = step
            results = self._in_runtime(step, values)
        values.update((key, r) for key, r in zip(step.outputs, results, strict=False) if key)

    def _call(self, step: Step, values: Values) -> Any:
        """None where this form of the operator has no function."""
        assert step.function is not None
        inputs = tuple(values[k] if k else None for k in step.inputs)
        if step.function.blocked:
            inputs = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)
        types = tuple(self._stored.get(k) for k in step.inputs)
        call = Call(inputs, self._attrs[id(step)], step.opset, len(step.outputs), self.precision, types)
        try:
            result = step.function.run(call)
        except (Unsupported, RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError):
            return None
        return result if isinstance(result, tuple) else (result,)

    def _in_runtime(self, step: Step, values: Values) -> list[Any]:
        """A node alone in ONNX Runtime."""
        names = {n: k for n, k in zip(step.node.input, step.inputs, strict=True) if n} | step.captured
        types = self._element_types()
        feeds = {n: self._array(values[k], types.get(k)) for n, k in names.items()}
        constants = self.program.constants
        fixed = {n for n, k in names.items() if k in constants and constants[k].dtype.kind in "iu"}
        if step.key not in self._sessions:
            self._sessions[step.key] = Session(
                Model(_alone(self.program, step, feeds, fixed)), what=f"the node '{step.key}' alone"
            )
        try:
            results = self._sessions[step.key].run({n: v for n, v in feeds.items() if n not in fixed})
        except BadInputError as error:
            raise UnsupportedModelError(
                f"{step.op} '{step.key}' cannot be evaluated for fine-tuning: {error}"
            ) from None
        named = dict(zip(self._sessions[step.key].outputs, results, strict=True))
        return [self._held(named[n]) if n in named else None for n in step.node.output]

    def _held(self, value: Any) -> Any:
        """A tensor; sequences and maps stay as ONNX Runtime gives them, and no gradient passes them."""
        return value if isinstance(value, list | dict) else self.tensor(np.asarray(value))

    def _array(self, value: Any, data_type: int | None) -> Any:
        if isinstance(value, list | dict):
            return value
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        array: Array = value.detach().numpy()
        dtype = helper.tensor_dtype_to_np_dtype(data_type) if data_type else None
        if dtype is None:
            return array.astype(np.float32) if array.dtype == np.float64 else array
        return np.asarray(array, dtype)

    def _element_types(self) -> dict[str, int]:
        """Types of tensors at the top, as inferred; what runs in ONNX Runtime needs them."""
        if self._types is None:
            proto = self.program.model.proto
            try:
                graph = onnx.shape_inference.infer_shapes(proto).graph
            except Exception:  # inference is a courtesy here: it raises what it likes
                graph = proto.graph
            known = [*graph.value_info, *graph.input, *graph.output]
            self._types = {v.name: v.type.tensor_type.elem_type for v in known if v.type.tensor_type.elem_type}
            self._types |= self._stored
        return self._types

    def _tensors(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return {n: self.tensor(v) if isinstance(v, np.ndarray) else v for n, v in attrs.items()}


def _alone(program: Program, step: Step, feeds: Feeds, fixed: Container[str]) -> ModelProto:
    """A model of one node, with everything it reads as inputs. fixed: but for these, such as sizes that shapes follow from."""
    proto = ModelProto()
    proto.CopyFrom(shell(program.model.proto))
    proto.graph.name = "node"
    proto.graph.node.add().CopyFrom(step.node)
    for name, value in feeds.items():
        if name in fixed:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        elif isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
            proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.STRING, [None] * value.ndim))
        else:
            proto.graph.input.append(declared(name, value))
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in step.node.output if n)
    return proto


def _last_reads(steps: Sequence[Step]) -> list[list[str]]:
    """Keys that nobody reads after step k."""
    last: dict[str, int] = {}
    for k, step in enumerate(steps):
        for key in (*step.reads, *step.outputs):
            last[key] = k
    gone: list[list[str]] = [[] for _ in steps]
    for key, k in last.items():
        if key:
            gone[k].append(key)
    return gone


def _reached(body: Body, wanted: set[str], opaque: dict[str, Step]) -> set[str]:
    """Keys from which a differentiable path leads to `wanted`."""
    reached = set(wanted)
    for step in reversed(body.steps):
        hit = [k for k, o in enumerate(step.outputs) if o in reached]
        if not hit:
            continue
        if step.branches:
            for branch in step.branches.values():
                reached |= _reached(branch, {branch.outputs[k] for k in hit}, opaque)
        elif step.key not in opaque and step.function is not None and not step.function.blocked:
            reached.update(k for k in step.inputs if k)
    return reached
