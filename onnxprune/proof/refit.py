"""A repaired model is the cut one with other numbers at the places that its plan names, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import onnx

from onnxprune.errors import VerificationError
from onnxprune.model.interface import unmarked
from onnxprune.model.loaded import Model
from onnxprune.model.patch import constants_at, digest_of, with_constants
from onnxprune.model.save import tensors
from onnxprune.model.tensors import little_endian, read


def check_refit(
    cut: Model,
    pruned: Model,
    refit: Sequence[tuple[str, int]],
    digest: str | None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model,
) -> None:
    """A repaired model must be the cut one with other numbers at the inputs that the plan names, and nothing else.

    digest: of those numbers, where the plan has one. finish: what was done to the repaired model last. Raises `VerificationError`.
    """
    values = constants_at(pruned, refit)
    lost = [f"{node}:{i}" for node, i in refit if (node, i) not in values]
    if lost:
        raise VerificationError(f"The pruned model has no constant at {lost[0]}, which the plan says was fitted.")
    bad = next((f"{node}:{i}" for (node, i), v in values.items() if not np.isfinite(v).all()), None)
    if bad is not None:
        raise VerificationError(f"The fitted constant at {bad} is not finite.")
    before = constants_at(cut, refit)
    odd = next((p for p, v in values.items() if p in before and before[p].shape != v.shape), None)
    if odd is not None:
        raise VerificationError(
            f"The constant at {odd[0]}:{odd[1]} has shape {list(values[odd].shape)}, but the plan leaves {list(before[odd].shape)}."
        )
    wanted = cut.beside(finish(with_constants(unmarked(cut.proto), values)))
    if (
        wanted.proto.SerializeToString() != pruned.proto.SerializeToString()
        and digested(wanted).SerializeToString() != digested(pruned).SerializeToString()
    ):
        raise VerificationError(
            "The pruned model is not what the plan makes of the original: it differs in "
            + ("more than the fitted constants." if refit else "nodes or constants, where these inputs do not show it.")
        )
    if digest is not None and digest_of(values) != digest:
        raise VerificationError(
            "The fitted constants are not those of the plan; the file was changed since, or belongs to another plan."
        )


def digested(model: Model) -> onnx.ModelProto:
    """A copy with digests in place of numbers, so that it does not matter how and in which file they are stored."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    for tensor in tensors(copy.graph):
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        digest = hashlib.sha256(little_endian(read(tensor, model.folder))).digest()
        bare = onnx.TensorProto(name=tensor.name, doc_string=tensor.doc_string, data_type=tensor.data_type)
        bare.dims.extend(tensor.dims)
        bare.raw_data = digest
        tensor.CopyFrom(bare)
    return copy
