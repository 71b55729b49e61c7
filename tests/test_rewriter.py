"""One import for any number of cuts: nothing of a cut is left in the next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.choose.allocate import allocate
from onnxprune.choose.budget import Budget
from onnxprune.cut.rewrite import Rewriter, rewrite
from onnxprune.model import importer
from onnxprune.model.load import load
from tests import test_traps as traps
from tests.helpers import score
from tests.test_properties import SETTINGS, batches, made, programs, seeds, starts

MODELS = Path(__file__).parent.parent / "models"


def check(model: onnx.ModelProto, seed: int) -> int:
    """Random removals in turn, none at all between and after them; how many of them changed the model."""
    analysis = analysis_of(load(model), Scope(include_inexact=True))
    if not any(g.removable for g in analysis.groups):
        return 0
    rewriter = Rewriter(analysis)
    nothing = np.zeros(analysis.solution.count, bool)
    original = rewrite(analysis, nothing).SerializeToString(deterministic=True)
    cuts = 0
    for k, share in enumerate((0.3, 0.0, 0.6, 0.1, 0.0)):
        scores = score(analysis, "random", seed + k)
        removed = allocate(analysis, scores, Budget("ratio", share), 1).removed if share else nothing
        found = rewriter(removed).SerializeToString(deterministic=True)
        assert found == rewrite(analysis, removed).SerializeToString(deterministic=True)
        cuts += found != original
    return cuts


@given(program=programs, seed=seeds, start=starts, batch=batches, direct=st.booleans())
@settings(SETTINGS, max_examples=30)
def test_random_graphs(
    program: list[tuple[str, int, int, int]], seed: int, start: str, batch: int, direct: bool
) -> None:
    model = made(program, seed, start, batch, direct)
    assume(check(model, seed))


@pytest.mark.parametrize(
    "trap",
    [
        "whole_network_in_a_branch",
        "outer_tensors_captured_by_branches",
        "branches_within_branches",
        "one_kernel_in_three_layers_is_cut_per_use",
        "equal_biases_and_batch_norms_are_shared",
        "weights_in_constant_nodes",
        "shared_weight_between_a_branch_and_the_main_graph",
    ],
)
def test_branches_shared_and_stored_constants(trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[onnx.ModelProto] = []
    original: Any = vars(traps)["check"]

    def noted(model: onnx.ModelProto, *rest: Any, **more: Any) -> Any:
        models.append(model)
        return original(model, *rest, **more)

    monkeypatch.setattr(traps, "check", noted)
    getattr(traps, f"test_{trap}")()
    assert models
    assert all(check(model, 1) >= 2 for model in models)


def test_graph_imports_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = []

    def counted(model: Any) -> gs.Graph:
        imports.append(model)
        return original(model)

    original = importer.import_graph
    for module in [m for name, m in sys.modules.items() if name.startswith("onnxprune")]:
        if getattr(module, "import_graph", None) is original:
            monkeypatch.setattr(module, "import_graph", counted)
    onnxprune.prune(MODELS / "digits.onnx", onnxprune.Budget("macs", 0.5), data=MODELS / "digits_calib.npz")
    assert 2 <= len(imports) <= 6
