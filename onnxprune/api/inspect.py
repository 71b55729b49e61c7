"""What can be removed from a model: load -> analyse -> list."""

from __future__ import annotations

from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import options_of
from onnxprune.model.load import Source, load
from onnxprune.report.inspection import inspection


def inspect(model: Source, **options: Any) -> dict[str, Any]:
    """Groups, units, members, MACs and parameters that each group carries, and every pin with its reason and remedy.

    model: path or ModelProto. options: the fields of `Options` that say how to look:
    input_shapes, data, include_inexact, include, exclude, custom_ops, seed.
    """
    settings = options_of(options, "inspect")
    runtime.load_custom_ops(settings.custom_ops)
    analysis = analysis_of(load(model), settings.scope)
    return inspection(analysis, CostModel(analysis))
