"""Prune one graph of the zoo and look at the result with nothing but the plan, ONNX and ONNX Runtime.

measured = measure(load_graph(path))      # raises AssertionError where a promise is broken
measured.macs                             # the share of the multiply-accumulates that is left
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, helper, numpy_helper

import onnxprune
from onnxprune import Budget, Plan
from onnxprune.model.draws import drawn
from tests.oracle import Array, deviation, same_interface, session
from tests.zoo import feeds, has_dynamic_batch

RATIO = 0.5
FUSED = 1e-3  # of the output's scale: what ONNX Runtime's own graph optimizations may change
INSIDE = 1e-3  # of an activation's scale: Erf of ±125 makes 2e-4 of float32's rounding, a wrong unit makes 1
Feeds = dict[str, Array]
Cuts = dict[str, dict[int, list[int]]]  # activation -> axis -> removed positions


@dataclass(frozen=True)
class Measured:
    """What one run found and left: groups that can lose units, shares of MACs and parameters, the outputs' worst error."""

    groups: int
    macs: float
    params: float
    error: float


def measure(model: ModelProto, inexact: bool = False, examples: Sequence[Feeds] = ()) -> Measured:
    """Prune half of every group and check the result, on random inputs unless there are `examples`.

    Exact pruning is compared with the masked original as `masked` reads it from the plan; approximate pruning has only the
    reference that the program itself makes of it.
    """
    result = onnxprune.prune(model, Budget("ratio", RATIO), round_to=1, benchmark=False, include_inexact=inexact)
    pruned, plan, check = result.model, result.plan, result.report.check
    onnx.checker.check_model(pruned, full_check=True)
    same_interface(model, pruned)
    assert any(g.removed for g in plan.groups), "nothing was removed, silently"
    error, tolerance = check.error, check.tolerance
    assert error <= tolerance, f"the program's own check found {error:.2g}"

    model, pruned = drawn(model), drawn(pruned)  # from here on they draw the same random numbers
    inputs = examples or [feeds(model, batch, seed=batch) for batch in ((1, 2) if has_dynamic_batch(model) else (1,))]
    plain, optimized = session(pruned), session(pruned, optimized=True)
    results = [plain.run(None, given) for given in inputs]
    for given, got in zip(inputs, results, strict=True):
        assert deviation(got, optimized.run(None, given)) <= FUSED
    before, after = observe(model, inputs[0]), observe(pruned, inputs[0])
    cuts = activation_cuts(model, plan)
    if not inexact:
        reference = masked(model, cuts, before)
        compare_activations(cuts, observe(reference, inputs[0]), after)
        outputs = session(reference)
        for given, got in zip(inputs, results, strict=True):
            if not has_branches(model):  # their activations are not masked here
                error = max(error, deviation(outputs.run(None, given), got))
        assert error <= tolerance, f"differs from the masked original by {error:.2g}"
    kept, params = (pair.after / pair.before for pair in (plan.macs, plan.params))
    if not has_branches(model) and all(before[o.name].shape == after[o.name].shape for o in model.graph.output):
        counted = macs(pruned, after) / macs(model, before)
        assert abs(counted - kept) <= 0.02, f"{counted:.3f} of the MACs are left, the plan says {kept:.3f}"
    return Measured(len(result.report.groups), round(kept, 4), round(params, 4), error)


# ---------------------------------------------------------------- a second reading of the plan


def has_branches(model: ModelProto) -> bool:
    """True where some of the network lies in subgraphs."""
    return any(a.type == AttributeProto.GRAPH for n in model.graph.node for a in n.attribute)


def activation_cuts(model: ModelProto, plan: Plan) -> Cuts:
    """What the plan removes from activations of the main graph, as opposed to constants."""
    made = {o for n in model.graph.node if n.op_type != "Constant" for o in n.output}
    outputs = {o.name for o in model.graph.output}
    cuts: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for group in plan.groups:
        for member in group.members:
            if member.tensor in made - outputs:
                cuts[member.tensor][member.axis].update(member.removed)
    assert cuts or has_branches(model), "the plan names no activation"
    return {name: {axis: sorted(gone) for axis, gone in axes.items()} for name, axes in cuts.items()}


def observe(model: ModelProto, given: Feeds) -> dict[str, Array]:
    """The value of every activation of the main graph."""
    probe = ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in probe.graph.output}
    made = (name for node in probe.graph.node for name in node.output if name and name not in known)
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    runner = session(probe)
    names = [o.name for o in runner.get_outputs()]
    return given | dict(zip(names, runner.run(names, given), strict=True))


def masked(model: ModelProto, cuts: Cuts, values: dict[str, Array]) -> ModelProto:
    """The model with the cut positions of activations set to zero, right where they are made.

    `Where`, not a product: 1 / sqrt(0) of a removed head is infinite, and stays out.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    del copy.graph.value_info[:]
    for node in nodes:
        copy.graph.node.append(node)
        here = copy.graph.node[-1]
        for k, name in enumerate(here.output):
            if name in cuts:
                here.output[k] = whole = f"{name}//whole"
                kept, zero = f"{name}//kept", f"{name}//zero"
                copy.graph.initializer.append(numpy_helper.from_array(kept_positions(values[name], cuts[name]), kept))
                if values[name].dtype == bool:
                    copy.graph.node.append(helper.make_node("And", [kept, whole], [name]))
                else:
                    nothing = np.zeros((), values[name].dtype)
                    copy.graph.initializer.append(numpy_helper.from_array(nothing, zero))
                    copy.graph.node.append(helper.make_node("Where", [kept, whole, zero], [name]))
    return copy


def kept_positions(value: Array, axes: dict[int, list[int]]) -> Array:
    """Bools that broadcast to `value`, False at the given positions of each axis."""
    kept = np.ones([n if a in axes else 1 for a, n in enumerate(value.shape)], bool)
    for axis, gone in axes.items():
        np.moveaxis(kept, axis, 0)[gone] = False
    return kept


def compare_activations(cuts: Cuts, reference: dict[str, Array], after: dict[str, Array]) -> None:
    """Every activation that kept its name holds what the masked original holds at the kept positions.

    This sees what the outputs may hide: random deep networks fade, and a layer scale of 1e-6 silences its branch. An
    activation may have lost more than the plan lists: where heads lose different offsets, no slice of one axis says so.
    """
    compared = 0
    for name in cuts.keys() & after.keys():
        wanted = reference[name]
        for axis, gone in cuts[name].items():
            wanted = np.delete(wanted, gone, axis)
        shape = after[name].shape
        assert all(n <= m for n, m in zip(shape, wanted.shape, strict=True)), f"'{name}' is {shape}, not {wanted.shape}"
        if shape == wanted.shape and np.isfinite(wanted).all():
            error = deviation([wanted], [after[name]])
            assert error <= INSIDE, f"'{name}' differs from the masked original by {error:.2g}"
            compared += 1
    assert compared or not cuts, "no activation could be compared"


# ---------------------------------------------------------------- a second count


def macs(model: ModelProto, values: dict[str, Array]) -> int:
    """Multiply-accumulates of convolutions and matrix products, from the shapes that a run has shown."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer} | {name: v.shape for name, v in values.items()}
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            x, w, y = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
            if node.op_type == "ConvTranspose":  # [I, O/g, kH, kW]: every input position speaks to O/g kH kW outputs
                total += int(np.prod(x) * np.prod(w[1:]))
            elif node.op_type == "Conv":  # [O, I/g, kH, kW]
                total += int(np.prod(y) * np.prod(w[1:]))
            else:
                transposed = any(a.name == "transA" and a.i for a in node.attribute)
                total += int(np.prod(y) * x[0 if transposed else -1])
    return total
