"""Operators whose output has a size that depends on values, not on sizes alone."""

from __future__ import annotations

from onnx import NodeProto, helper

SIZED_BY: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Inputs whose values are the size of an output, or decide it."""

SIZED_BY_DATA = frozenset(
    """
    BeamSearch Compress GreedySearch ImageDecoder NonMaxSuppression NonZero Sampling StringSplit Tokenizer Unique WhisperBeamSearch
    """.split()
)
"""How much they give depends on the values of what they read."""


def decides_size(op: str, i: int) -> bool:
    """Can the value of input `i` change the size of what the operator gives?"""
    return op in SIZED_BY_DATA or i in SIZED_BY.get(op, ())


WHOLE = frozenset(
    """
    And ArgMax ArgMin BitwiseAnd BitwiseNot BitwiseOr Ceil Equal Floor Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual
    NonMaxSuppression NonZero Not Or Round Sign Xor
    """.split()
)
"""Operators that give whole numbers, whatever they read."""


def makes_whole(node: NodeProto) -> bool:
    """Are a node's outputs whole numbers (or answers), so that a small change of what it reads changes them by one or not at all?"""
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        return helper.tensor_dtype_to_np_dtype(to).kind in "iub"
    return node.op_type in WHOLE
