"""What can be removed from a model: load -> analyse -> list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data, take
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import options_of
from onnxprune.clock import Clock, Progress, silent
from onnxprune.groups.observation import Feeds
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.report.inspection import inspection
from onnxprune.report.warnings import of_scale

FEW = 32  # samples of each file that the scale of the inputs is judged by


def inspect(model: Source, *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """Groups, units, members, MACs and parameters that each group carries, and every pin with its reason and remedy; with data, warnings.

    model: path or ModelProto. options: the fields of `Options` that say how to look:
    input_shapes, data, include_inexact, include, exclude, custom_ops, seed.
    """
    settings = options_of(options, "inspect")
    runtime.load_custom_ops(settings.custom_ops)
    clock = Clock(progress)
    clock("load")
    loaded = load(model)
    clock("analyse")
    analysis = analysis_of(loaded, settings.scope, share=clock.share)
    clock("list")
    doubts = [] if settings.data is None else of_scale(analysis, _some(settings.data, loaded))
    return inspection(analysis, CostModel(analysis)) | {"warnings": doubts}


def _some(data: str | Path, loaded: LoadedModel) -> list[Feeds]:
    inputs = runtime.graph_inputs(loaded.proto)
    return [take(feed, inputs, FEW) for feed in load_data(data, inputs)]
