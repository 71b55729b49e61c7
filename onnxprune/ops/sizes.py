"""Operators whose output has a size that depends on values, not on sizes alone."""

from __future__ import annotations

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
