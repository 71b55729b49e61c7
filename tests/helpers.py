"""What several test files need: scores of classes, and the examples in docstrings."""

from __future__ import annotations

import re
import textwrap
from types import ModuleType
from typing import Any

import numpy as np

from onnxprune.choose.importance import IMPORTANCES, scores_of
from onnxprune.groups.analysis import Analysis


def score(analysis: Analysis, importance: str = "l2", seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scores of an importance that needs no calibration, by name."""
    return scores_of(IMPORTANCES[importance], analysis, None, seed)


def documented(module: ModuleType, name: str, **names: Any) -> Any:
    """The example class in a module's docstring, made by running its text. names: those that it uses."""
    block = re.search(rf" {{4}}class {name}:.*?(?=\n\n {{4}}\S)", module.__doc__ or "", re.DOTALL)
    assert block is not None
    exec(f"from __future__ import annotations\n{textwrap.dedent(block[0])}", names)
    return names[name]
