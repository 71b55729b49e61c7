"""Quantization beside pruning: the original and the pruned model, each as they are and quantized, side by side.

Which one serves is a question of size, speed and what is lost, so all four are measured on the same inputs in one run.
"""

from __future__ import annotations

import onnx

from onnxprune import runtime
from onnxprune.calibrate.answers import judges_classes
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import disagreement
from onnxprune.calibrate.metric import metric_of
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import judge
from onnxprune.choose.subject import Subject
from onnxprune.groups.analysis import Analysis
from onnxprune.model.loaded import Model
from onnxprune.model.save import stored_bytes
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.report.values import Variant


def quantize(
    analysis: Analysis, pruned: onnx.ModelProto, calibration: Calibration, settings: Options, watch: Stopwatch
) -> tuple[onnx.ModelProto, tuple[Variant, ...]]:
    """The pruned model quantized, and what each of the four is worth."""
    original, cut = analysis.model, analysis.model.beside(pruned)
    small = quantized(cut, calibration, "the pruned model")
    models = {
        "original": original,
        "pruned": cut,
        "quantized": Model(quantized(original, calibration, "the original")),
        "pruned and quantized": Model(small),
    }
    return small, _measured(analysis, calibration, settings, models, watch)


def written(original: Subject, settings: Options, proto: onnx.ModelProto) -> onnx.ModelProto:
    """What becomes of a repaired model's numbers before it is written."""
    if settings.then_quantize is None or original.calibration is None:
        return proto
    return quantized(original.bare.model.beside(proto), original.calibration, "the pruned model")


def quantized(model: Model, calibration: Calibration, what: str) -> onnx.ModelProto:
    """A model quantized alone, with the samples that are fitted. what: how messages call it."""
    samples = calibration.samples
    fitted = [f for f, out in zip(samples.feeds[: samples.given], samples.held, strict=False) if not out]
    return runtime.quantize(model, fitted, what)


def _measured(
    analysis: Analysis,
    calibration: Calibration,
    settings: Options,
    models: dict[str, Model],
    watch: Stopwatch,
) -> tuple[Variant, ...]:
    names = [f"the {name} model" for name in models]
    times = watch.latency(list(models.values()), analysis.feeds[0], names)
    chosen = calibration.samples.own_held
    metric = metric_of(settings.metric, calibration, chosen)
    sizes = [analysis.model.size_bytes, *(stored_bytes(m.proto) for m in list(models.values())[1:])]
    return tuple(
        Variant(
            name,
            size,
            ms.median,
            judge(calibration, model),
            _top1(calibration, model),
            judge(calibration, model, metric, chosen),
        )
        for (name, model), size, ms in zip(models.items(), sizes, times, strict=True)
    )


def _top1(calibration: Calibration, model: Model) -> float | None:
    judged = calibration.judged
    if not judges_classes(judged, calibration.outputs):
        return None
    return judge(calibration, model, judged.by_tensors(disagreement))
