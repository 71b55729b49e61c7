"""What can be removed from a model: load -> analyse -> list."""

from __future__ import annotations

from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import options_of
from onnxprune.clock import Clock, Progress, silent
from onnxprune.model.load import Source, load
from onnxprune.report.inspection import inspection


def inspect(model: Source, *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """Groups, units, members, MACs and parameters that each group carries, and every pin with its reason and remedy.

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
    return inspection(analysis, CostModel(analysis))
