"""A weight that may become sparse: a stored constant, seen as the matrix that its operator multiplies by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.groups.analysis import Use
from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.model.graph import view
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.loaded import LoadedModel


@dataclass(frozen=True)
class SparseWeight:
    """tensor: key of the constant; uses: `(node key, input)` of all operators that multiply by it as this matrix.

    shared: uses of other kinds, or by another matrix. node: the first operator in words. run: how many consecutive inputs [of K] are
    neighbours along the input axis (channels of one tap of a kernel). axis: what the inputs are, in words.
    """

    tensor: str
    shape: Shape
    uses: tuple[Use, ...]
    shared: int
    node: str
    run: int
    axis: str
    unfold: Callable[[Array], Array] = field(repr=False, compare=False)

    def places(self) -> Ids:
        """[g, K, O]: flat positions of the stored constant."""
        return np.asarray(self.unfold(np.arange(int(np.prod(self.shape))).reshape(self.shape)), np.int64)

    def matrix(self, values: Array) -> Array:
        """[g, K, O] of the stored values."""
        return np.asarray(self.unfold(values))

    def stored(self, values: Array, matrix: Array) -> Array:
        """The stored values with this matrix [g, K, O] written into them; the type stays."""
        result = np.array(values)
        result.reshape(-1)[self.places()] = matrix.astype(values.dtype)
        return result


@dataclass(frozen=True)
class Left:
    """A weight that stays as it is, and why.

    tensor: key of the constant.
    node: the operator that reads it, in words.
    reason: why it stays.
    """

    tensor: str
    node: str
    reason: str


def with_values(model: LoadedModel, opsets: dict[str, int], values: dict[str, Array]) -> onnx.ModelProto:
    """The model with other values in these constants (by key), stored in the form that they had."""
    graph = import_graph(model)
    constants = view(graph, opsets).constants
    for key, array in values.items():
        constants[key].values = array
    return export_model(graph, model.proto)
