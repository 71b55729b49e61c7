"""Where the time of a model goes, and why a pruned one is not faster: load -> analyse -> record in turn -> map -> compare -> advise."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose.field import both
from onnxprune.choose.options import Options
from onnxprune.choose.sparsify_options import BenchOptions
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Plan
from onnxprune.errors import BadInputError
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.interface import marked, resized
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.report.findings import Subject, findings_between, findings_of
from onnxprune.report.profile import ProfileReport
from onnxprune.report.profiling import Layers, Machine, profile_of
from onnxprune.report.renderer import renderer_for
from onnxprune.report.side_by_side import compared, pairs_of
from onnxprune.version import __version__
