"""Everything else: operators that leave some axes alone, and operators that keep all positions, each with its reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.groups.maps import Maps, reshape, simplify, varying
from onnxprune.ops.attention import silence
from onnxprune.ops.base import Edit, MapContext, MaskEdit, Rule, weights_at
from onnxprune.ops.conv import contract, conv_macs, follow_groups
from onnxprune.ops.growing import pad, pad_adjust
from onnxprune.ops.indexing import gather_nd, grid_sample, triangle
from onnxprune.ops.labelled import combine, flatten, operand, unnamed
from onnxprune.ops.movement import reshaped
from onnxprune.ops.pointwise import RANDOM, unary


def keeps(reason: str, remedy: str = "") -> Callable[[MapContext], list[Maps]]:
    """A rule that pins all positions of all inputs."""

    def rule(ctx: MapContext) -> list[Maps]:
        for i in range(len(ctx.node.inputs)):
            if ctx.has(i) and not ctx.is_lazy(i):
                ctx.pin(ctx.maps(i), reason, remedy)
        return ctx.nothing()

    return rule


def blocked(ctx: MapContext) -> list[Maps]:
    """Of a file that was optimized for one machine: channels lie in blocks of its registers' size. Named, so that somebody sees why."""
    remedy = "prune the file that this one was made from, before ONNX Runtime optimized it"
    keeps(MACHINE, remedy)(ctx)
    if not (ctx.has(1) and ctx.is_lazy(1) and len(ctx.out_shape()) > 1):
        return ctx.nothing()
    channels = ctx.fresh(ctx.out_shape(), (1,), origin=True)
    ctx.pin([channels], MACHINE, remedy)
    return [(channels,)]


def _pin_others(ctx: MapContext, first: int, reason: str) -> None:
    for i in range(first, len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), reason)


# ---------------------------------------------------------------- axes that pass


def center_crop_pad(ctx: MapContext) -> list[Maps]:
    """Axes whose size changes are cropped or padded in the middle."""
    changed = tuple(a for a, (x, y) in enumerate(zip(ctx.shape(0), ctx.out_shape(), strict=True)) if x != y)
    return [ctx.pin_axes(0, changed, "crops or pads this axis")]


def follow_crop(edit: Edit) -> None:
    axes = [int(a) for a in edit.attrs.get("axes") or range(len(edit.old_out()))]
    old, new = np.array(edit.old_out())[axes], np.array(edit.new_out())[axes]
    if (old != new).any():
        edit.patch_input(1, old != new, new)


def col2im(ctx: MapContext) -> list[Maps]:
    """[N, C*K, L] -> [N, C, ..]: the K entries of a channel's block go together."""
    shape, out = ctx.shape(0), ctx.out_shape()
    view = (shape[0], out[1], shape[1] // out[1], shape[2])
    result = []
    for f in ctx.flat_axes(ctx.maps(0), (2,)):
        channel = ctx.units.align(reshape(f, shape, view), (2,)) if f.shape[1] > 1 else reshape(f, shape, view)
        result.append(channel.reshape(*channel.shape[:2], *[1] * (len(out) - 2)))
    return [simplify(result)]


def compress(ctx: MapContext) -> list[Maps]:
    """Compress(x, condition): positions along `axis` (or of the flattened x) that data selects."""
    if "axis" not in ctx.attrs:
        return [ctx.pin_axes(0, tuple(range(ctx.rank())), "selects single elements")]
    _pin_others(ctx, 1, "selects by it")
    return [ctx.pin_axes(0, (ctx.axis(),), f"selects positions of axis {ctx.axis()} by data")]


def dft(ctx: MapContext) -> list[Maps]:
    """DFT along one axis; the last axis holds real and imaginary part. Its axis became an input in opset 20."""
    rank = ctx.rank()
    if ctx.opset >= 20:
        value = ctx.value(2) if ctx.has(2) else np.array(-2)
        axes = tuple(range(rank)) if value is None else (int(value) % rank, rank - 1)
    else:
        axes = (ctx.axis(1), rank - 1)
    return [ctx.pin_axes(0, axes, "transforms this axis")]


def determinant(ctx: MapContext) -> list[Maps]:
    rank = ctx.rank()
    kept = ctx.pin_axes(0, (rank - 2, rank - 1), "takes determinants over its last two axes")
    return [tuple(f.reshape(f.shape[:-2]) for f in kept)]


def matrices(ctx: MapContext) -> list[Maps]:
    """Operators on the matrices of the last two axes."""
    rank = ctx.rank()
    return [ctx.pin_axes(0, (rank - 2, rank - 1), "inverts matrices over its last two axes")]


def deform_conv(ctx: MapContext) -> list[Maps]:
    """DeformConv(X, W, offset, B, mask): a convolution at positions that data moves, the same for all channels of an offset group."""
    offsets = [i for i in (2, 4) if ctx.has(i)]
    for i in offsets:
        ctx.pin_axes(i, tuple(range(ctx.rank(i))), "moves its kernel by them")
    if int(ctx.attr("offset_group", 1)) > 1:
        ctx.pin_axes(0, (1,), "shifts its channels in groups")
    groups, shape = int(ctx.attr("group", 1)), ctx.shape(1)
    view = (groups, shape[0] // groups, *shape[1:])
    kernel = tuple(f"k{a}" for a in range(2, len(shape)))
    return [contract(ctx, view, ("g", "o", "i", *kernel), shape[0], 1, 3)]


def drawn_alike(ctx: MapContext) -> list[Maps]:
    """Random numbers for every position of a tensor: as many are drawn as before, and those of what stays are taken."""
    maps = ctx.maps(0)
    if len({varying(f) for f in maps}) > 1 or any(len(varying(f)) > 1 for f in maps):
        ctx.pin(maps, f"{RANDOM}, and these lie along several axes")
        return ctx.nothing()
    return [maps]


def draw_all(edit: Edit) -> None:
    for axis, (old, new) in enumerate(zip(edit.old(0), edit.new(0), strict=True)):
        if old != new:
            edit.draw_whole(axis)


def max_roi_pool(ctx: MapContext) -> list[Maps]:
    kept = ctx.flat_axes(ctx.pin_axes(0, (0,), "selects images by data"), (2, 3))
    _pin_others(ctx, 1, "reads regions from it")
    return [kept]


def tensor_scatter(ctx: MapContext) -> list[Maps]:
    """TensorScatter(cache, update, indices): a cache written along one axis; the other axes of both are tied."""
    rank = ctx.rank()
    axis = ctx.axis(-2)
    labels = tuple(str(a) for a in range(rank))
    flat = ("0", labels[axis])
    cache = flatten(ctx, operand(ctx, 0, labels), flat)
    own = tuple(f"u{axis}" if a == axis else x for a, x in enumerate(labels))
    update = flatten(ctx, operand(ctx, 1, own), ("0", f"u{axis}"))
    return [unnamed(combine(ctx, cache, update, labels, what="what is written into it"), labels)]


def class_loss(ctx: MapContext) -> list[Maps]:
    """Losses over classes: everything they look at stays."""
    for i in (0, 1, 2):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), "compares all classes at all positions")
    return ctx.nothing()


def resized_channels(ctx: MapContext) -> list[Maps]:
    """CropAndResize(x [N, C, H, W], boxes, ..): channels pass."""
    _pin_others(ctx, 1, "reads regions from it")
    return [ctx.flat_axes(ctx.pin_axes(0, (0,), "selects images by data"), (2, 3))]


def distances(ctx: MapContext) -> list[Maps]:
    """CDist(A [M, K], B [N, K]): squared distances sum over K, so zeros add nothing."""
    a, b = operand(ctx, 0, ("m", "k")), operand(ctx, 1, ("n", "k"))
    return [unnamed(combine(ctx, a, b, ("m", "n")), ("m", "n"))]


def silence_operands(edit: MaskEdit) -> None:
    """Distances to a constant: its removed positions are zero as well."""
    silence(edit, 0, 1)


def scaled(ctx: MapContext) -> list[Maps]:
    """An elementwise function of the first input; the others are scalars."""
    return [ctx.maps(0)]


# ---------------------------------------------------------------- all positions stay

OPTIONAL = "puts tensors into optionals, whose shapes are not followed"
STRINGS = "works on strings"
MACHINE = "is laid out for one kind of processor"
OPTIMIZED = (
    "com.microsoft.nchwc::Conv com.microsoft.nchwc::MaxPool com.microsoft.nchwc::AveragePool com.microsoft.nchwc::GlobalMaxPool "
    "com.microsoft.nchwc::GlobalAveragePool com.microsoft.nchwc::ReorderInput com.microsoft.nchwc::ReorderOutput "
    "com.microsoft.nchwc::Upsample"
)
BOXES, COMPARES = "selects boxes by comparing all of them", "compares all positions"
SELECTS = (BOXES, COMPARES)
PINNED = {
    "AffineGrid": "makes a grid of it",
    "BlackmanWindow HammingWindow HannWindow": "makes a table of this size",
    "MelWeightMatrix": "makes a table of these sizes",
    "Multinomial": RANDOM,
    "ImageDecoder": "decodes an image",
    "MaxUnpool": "writes to flat positions, which count channels",
    "NonMaxSuppression": BOXES,
    "STFT": "transforms the whole signal",
    "TfIdfVectorizer": "counts n-grams over all positions",
    "Unique com.microsoft::Unique": COMPARES,
    "Optional OptionalGetElement OptionalHasElement": OPTIONAL,
    "SequenceMap": "runs a function on each tensor of a sequence",
    "RegexFullMatch StringConcat StringNormalizer": STRINGS,
    "StringSplit": STRINGS,
    "LinearAttention com.microsoft::LinearAttention com.microsoft::GatedDeltaNet": "keeps a state per head inside",
    "ai.onnx.preview::FlexAttention": "computes its scores in a subgraph",
    "ai.onnx.preview.training::Adagrad ai.onnx.preview.training::Adam ai.onnx.preview.training::Gradient "
    "ai.onnx.preview.training::Momentum": "trains",
    "ai.onnx.ml::ArrayFeatureExtractor ai.onnx.ml::Binarizer ai.onnx.ml::CastMap ai.onnx.ml::CategoryMapper "
    "ai.onnx.ml::DictVectorizer ai.onnx.ml::FeatureVectorizer ai.onnx.ml::Imputer ai.onnx.ml::LabelEncoder "
    "ai.onnx.ml::LinearClassifier ai.onnx.ml::LinearRegressor ai.onnx.ml::Normalizer ai.onnx.ml::OneHotEncoder "
    "ai.onnx.ml::SVMClassifier ai.onnx.ml::SVMRegressor ai.onnx.ml::Scaler ai.onnx.ml::TreeEnsemble "
    "ai.onnx.ml::TreeEnsembleClassifier ai.onnx.ml::TreeEnsembleRegressor ai.onnx.ml::ZipMap": "reads features by their "
    "position",
    "com.microsoft::MatMulBnb4 com.microsoft::MatMulFpQ4": "quantizes its weights in blocks of a few bits, one after the other",
    "com.microsoft::DecoderMaskedMultiHeadAttention com.microsoft::SparseAttention com.microsoft::PackedAttention "
    "com.microsoft::PackedMultiHeadAttention com.microsoft::LongformerAttention com.microsoft::DecoderAttention "
    "com.microsoft::PagedAttention com.microsoft::AttnLSTM com.microsoft::WordConvEmbedding "
    "com.microsoft::QEmbedLayerNormalization com.microsoft::GroupNorm com.microsoft::SkipGroupNorm "
    "com.microsoft::NhwcConv com.microsoft::NhwcFusedConv com.microsoft::ConvTransposeWithDynamicPads "
    "com.microsoft::CausalConvWithState com.microsoft::MaxpoolWithMask com.microsoft::UnfoldTensor "
    "com.microsoft::BiasSoftmax com.microsoft::GatedAdd com.microsoft::GatedRMSNorm com.microsoft::SparseToDenseMatMul": "has a "
    "layout that its rule does not cover",
    "com.microsoft::MurmurHash3 com.microsoft::NGramRepeatBlock": "works on tokens",
    "com.microsoft::Tokenizer": "makes tokens of texts",
}
PINNED_SIZED_BY: dict[str, tuple[int, ...] | None] = {
    "AffineGrid": (1,),
    "BlackmanWindow HammingWindow HannWindow": (0,),
    "MelWeightMatrix": (0, 1),
    "MaxUnpool": (2,),
    "STFT": (1, 3),
    **dict.fromkeys(("ImageDecoder", "NonMaxSuppression", "Unique com.microsoft::Unique", "StringSplit"), None),
    **dict.fromkeys(("com.microsoft::Tokenizer",), None),
}

RULES = [
    Rule(("BitCast",), "pointwise", unary),
    Rule(("CenterCropPad",), "movement", center_crop_pad, params=(1,), adjust=follow_crop, sized_by=(1,)),
    Rule(("Col2Im",), "movement", col2im, params=(1, 2), sized_by=(1, 2)),
    Rule(("Compress",), "indexing", compress, picks=(1,), sized_by=None),
    Rule(("DFT",), "pins the axis", dft, params=(2,)),
    Rule(("Det",), "pins the axis", determinant),
    Rule(("com.microsoft::Inverse",), "pins the axis", matrices),
    Rule(
        ("DeformConv",),
        "contraction",
        deform_conv,
        adjust=follow_groups,
        macs=conv_macs,
        rounded=True,
        weights=weights_at((1, 1)),
    ),
    Rule(
        ("Bernoulli", "RandomNormalLike", "RandomUniformLike"),
        "pointwise",
        drawn_alike,
        adjust=draw_all,
        random=True,
        note="draws for all positions, and takes those that stay",
    ),
    Rule(("MaxRoiPool",), "pooling", max_roi_pool),
    Rule(("TensorScatter",), "indexing", tensor_scatter, places=True),
    Rule(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "pins", class_loss, note="compares all classes"),
    Rule(("com.microsoft::CropAndResize",), "pooling", resized_channels),
    Rule(("com.microsoft::CDist",), "contraction", distances, reference=silence_operands),
    Rule(("com.microsoft::ScaledSiLU",), "pointwise", scaled),
    Rule(("com.microsoft::Trilu",), "indexing", triangle, params=(1,)),
    Rule(("com.microsoft::GridSample",), "indexing", grid_sample),
    Rule(("com.microsoft::GatherND",), "indexing", gather_nd, picks=(1,)),
    Rule(("com.microsoft::ExpandDims",), "movement", reshaped, params=(1,)),
    Rule(("com.microsoft::Pad",), "movement", pad, params=(1, 2), adjust=pad_adjust, sized_by=(1,)),
    Rule(tuple(OPTIMIZED.split()), "pins", blocked, note=MACHINE),
    *[
        Rule(
            tuple(names.split()),
            "pins",
            keeps(reason),
            note=reason,
            random=reason == RANDOM,
            picks=(-1,) if reason in SELECTS else (),
            sized_by=PINNED_SIZED_BY.get(names, ()),
            whole=reason == BOXES,
        )
        for names, reason in PINNED.items()
    ],
]
