"""One node under adjustment: what an operator's rule may ask of it, and change about it, during a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.groups.analysis import kept_mask, settle
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, Shape, clusters
from onnxprune.groups.observation import Array
from onnxprune.model.draws import WHOLE
from onnxprune.model.graph import Node, name_of
from onnxprune.ops.base import Edit

if TYPE_CHECKING:
    from onnxprune.cut.rewrite import _Surgery


class NodeEdit(Edit):
    """One node under adjustment."""

    def __init__(self, surgery: _Surgery, node: Node) -> None:
        self.surgery = surgery
        self.node = node
        self.attrs = node.gs_node.attrs
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.opset = surgery.view.opsets.get(domain, 1)

    def changes(self) -> bool:
        shapes = self.surgery.shapes
        inputs = any(self.has(i) and self.old(i) != self.new(i) for i in range(len(self.node.inputs)))
        return inputs or any(
            k and k in shapes.analysis.maps and shapes.old(k) != shapes.new(k) for k in self.node.outputs
        )

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] != ""

    def _key(self, i: int) -> str:
        key = self.node.inputs[i]
        return self.surgery.aliases.get(key, key)

    def _maps(self, i: int) -> Maps:
        analysis = self.surgery.analysis
        use = analysis.uses.get((self.node.key, i))
        return use[1] if use else analysis.maps.get(self.node.inputs[i], ())

    def old(self, i: int) -> Shape:
        try:
            return self.surgery.shapes.old(self._key(i))
        except KeyError:  # an unobserved index tensor
            return ()

    def new(self, i: int) -> Shape:
        return self.surgery.shapes.of_maps(self._maps(i), self.old(i))

    def old_out(self, k: int = 0) -> Shape:
        return self.surgery.shapes.old(self.node.outputs[k])

    def new_out(self, k: int = 0) -> Shape:
        return self.surgery.shapes.new(self.node.outputs[k])

    def _alive(self, maps: Maps, shape: Shape, axis: int) -> Bools:
        alive = np.ones(shape[axis], bool)
        for axes, facets in clusters(maps):
            if axis in axes:
                mask = kept_mask(facets, axes, shape, self.surgery.gone)
                alive &= mask.any(axis=tuple(k for k, a in enumerate(axes) if a != axis))
        return alive

    def kept(self, i: int, axis: int) -> Array:
        return self._alive(self._maps(i), self.old(i), axis)

    def kept_out(self, k: int, axis: int) -> Array:
        key = self.node.outputs[k]
        return self._alive(self.surgery.analysis.maps.get(key, ()), self.old_out(k), axis)

    def rank_of(self, i: int, axis: int, position: int) -> int:
        for axes, facets in clusters(self._maps(i)):
            if axis in axes:
                cut = settle(facets, axes, self.old(i), self.surgery.gone)
                rank = int(cut.alive[axis][:position].sum())
                for line, mask in cut.lines:
                    if line[-1] == axis:  # every slab that stays keeps equally many before `position`
                        rank = int(mask.reshape(-1, mask.shape[-1])[0, :rank].sum())
                return rank
        return position

    def value(self, i: int) -> Array | None:
        key = self.node.inputs[i]
        source = self.surgery.aliases.get(key)
        if source is not None:
            return np.asarray(self.surgery.analysis.view.constants[source].values)
        observation = self.surgery.analysis.observation
        return observation.values[key] if observation.is_static_value(key) else None

    def observed(self, i: int) -> Array | None:
        found = self.value(i)
        return self.surgery.analysis.observation.values.get(self.node.inputs[i]) if found is None else found

    def constant(self, key: str) -> Array | None:
        source = self.surgery.aliases.get(key)
        return None if source is None else np.asarray(self.surgery.analysis.view.constants[source].values)

    def consumers(self) -> list[tuple[Node, int]]:
        return self.surgery.readers.get(self.node.outputs[0], [])

    # -- changes

    def set_attr(self, name: str, value: Any) -> None:
        self.node.gs_node.attrs[name] = value

    def drop_attr(self, name: str) -> None:
        self.node.gs_node.attrs.pop(name, None)

    def _constant(self, hint: str, value: Array) -> gs.Constant:
        return gs.Constant(self.surgery.fresh_name(hint), np.asarray(value, order="C"))

    def set_input(self, i: int, value: Array) -> None:
        node = self.node.gs_node
        while len(node.inputs) <= i:
            node.inputs.append(gs.Variable.empty())
        old = node.inputs[i]
        if isinstance(old, gs.Constant) and self._is_own(i):  # it keeps its name, and stays an input where it is one
            old.values = np.asarray(value, order="C")
            return
        hint = node.inputs[i].name or f"{name_of(self.node.key)}_input{i}"
        node.inputs[i] = self._constant(hint, value)

    def _is_own(self, i: int) -> bool:
        """Is input `i` a constant that nothing else reads?"""
        key = self.node.inputs[i] if i < len(self.node.inputs) else ""
        found = self.surgery.analysis.view_uses(key) if self.surgery.aliases.get(key) == key else set()
        return found == {(self.node.key, i)}

    def patch_input(self, i: int, changed: Array, value: Array) -> None:
        known, is_fixed = self.value(i), self.surgery.is_sized or self.constant(self.node.inputs[i]) is not None
        if known is not None and (is_fixed or changed.all()):
            self.set_input(i, np.where(changed, value, known).astype(known.dtype))
            return
        node, tensor, observed = self.node.gs_node, self.node.gs_node.inputs[i], self.observed(i)
        dtype = np.int64 if observed is None else observed.dtype
        out = gs.Variable(self.surgery.fresh_name(tensor.name), dtype=np.dtype(dtype))
        self.surgery.before[id(node)] += self._choice(tensor, changed, value.astype(dtype), out, tensor.name)
        node.inputs[i] = out

    def patch_sizes(self, i: int, changed: Array, before: Array, after: Array) -> None:
        entries = self.surgery.analysis.observation.entries(self.node.inputs[i]) if self.value(i) is None else []
        follows = changed & np.array([e is None for e in entries] or False)
        if (changed & ~follows).any():
            self.patch_input(i, changed & ~follows, after)
        if not follows.any():
            return
        node, tensor = self.node.gs_node, self.node.gs_node.inputs[i]
        out = gs.Variable(self.surgery.fresh_name(tensor.name), dtype=np.int64)
        self.surgery.before[id(node)] += self._scaled(
            tensor, np.where(follows, before, 1), np.where(follows, after, 1), out
        )
        node.inputs[i] = out

    def _scaled(self, tensor: gs.Tensor, before: Array, after: Array, out: gs.Tensor) -> list[gs.Node]:
        """Nodes that make `out`: whole numbers times `after` / `before`, by their ratio in lowest terms, as what was observed may be a
        multiple of it, once per sample.
        """
        common = np.gcd(before, after)
        parts = self._constant(f"{out.name}_parts", (before // common).astype(np.int64))
        whole = self._constant(f"{out.name}_times", (after // common).astype(np.int64))
        each = gs.Variable(self.surgery.fresh_name(f"{out.name}_each"), dtype=np.int64)
        return [
            gs.Node("Div", each.name, inputs=[tensor, parts], outputs=[each]),
            gs.Node("Mul", whole.name, inputs=[each, whole], outputs=[out]),
        ]

    def _choice(self, tensor: gs.Tensor, changed: Array, value: Array, out: gs.Tensor, hint: str) -> list[gs.Node]:
        """Nodes that make `out`: `value` where `changed`, else `tensor`. Other entries of `value` were observed: not for the file."""
        size = self._constant(f"{hint}_size", np.where(changed, value, np.zeros_like(value)))
        if self.surgery.view.opset >= 9:
            mask = self._constant(f"{hint}_mask", changed)
            return [gs.Node("Where", size.name, inputs=[mask, size, tensor], outputs=[out])]
        mask = self._constant(f"{hint}_mask", (~changed).astype(value.dtype))  # before there was a Where
        rest = gs.Variable(self.surgery.fresh_name(f"{hint}_rest"), dtype=value.dtype)
        return [
            gs.Node("Mul", rest.name, inputs=[tensor, mask], outputs=[rest]),
            gs.Node("Add", size.name, inputs=[rest, size], outputs=[out]),
        ]

    def _moved(self, dtype: Any) -> tuple[gs.Variable, gs.Tensor]:
        """What the node computes, under a new name, and its first output, which nodes behind it now have to make."""
        node = self.node.gs_node
        out = node.outputs[0]
        node.outputs[0] = gs.Variable(self.surgery.fresh_name(out.name), dtype=dtype)
        return node.outputs[0], out

    def _after(self, op: str, dtype: Any, *more: gs.Tensor, **attrs: Any) -> None:
        """A node behind the first output, which keeps its name. more: what the new node reads besides."""
        raw, out = self._moved(dtype)
        self.surgery.after[id(self.node.gs_node)].append(
            gs.Node(op, raw.name, attrs=attrs, inputs=[raw, *more], outputs=[out])
        )

    def restore_counts(self, before: Array, after: Array) -> None:
        raw, out = self._moved(np.int64)
        self.surgery.after[id(self.node.gs_node)] += self._scaled(raw, after, before, out)

    def scale_output(self, factor: float) -> None:
        found = str(self.surgery.analysis.observation.dtypes.get(self.node.outputs[0]))
        dtype: np.dtype[Any] = FLOATS.get(found, np.dtype(np.float32))
        scale = self._constant(f"{self.node.gs_node.outputs[0].name}_scale", np.array(factor, dtype))
        self._after("Mul", dtype, scale)

    def gather_output(self, axis: int, index: Array) -> None:
        out = self.node.gs_node.outputs[0]
        positions = self._constant(f"{out.name}_positions", index)
        self._after("Gather", out.dtype, positions, axis=axis)

    def draw_whole(self, axis: int) -> None:
        """Its input gets the old size again: what stays lies where it was, and anything in between."""
        node, kept = self.node.gs_node, self.kept(0, axis)
        tensor, out = node.inputs[0], node.outputs[0]
        places = self._constant(f"{out.name}_places", np.where(kept, np.cumsum(kept) - 1, 0))
        wide = gs.Variable(self.surgery.fresh_name(f"{out.name}_like"), dtype=tensor.dtype)
        self.surgery.before[id(node)].append(
            gs.Node("Gather", wide.name, attrs={"axis": axis}, inputs=[tensor, places], outputs=[wide])
        )
        node.inputs[0] = wide
        self.gather_output(axis, np.flatnonzero(kept))
        node.outputs[0].name = self.surgery.fresh_name(f"{out.name}{WHOLE}")

    def scale_constant(self, i: int, factor: float) -> bool:
        if self._key(i) not in self.surgery.view.constants:
            return False
        tensor = self.node.gs_node.inputs[i]
        values = np.asarray(
            self.surgery.view.constants[self._key(i)].values if not hasattr(tensor, "values") else tensor.values
        )
        self.node.gs_node.inputs[i] = self._constant(tensor.name, (values * factor).astype(values.dtype))
        return True


FLOATS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
}
