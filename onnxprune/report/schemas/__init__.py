"""JSON Schemas (draft 2020-12) of the files that onnxprune writes: `plan`, `report`, `sparsity-report`, `profile-report`,
`explore-report` and `comparison`.

They lie beside this file as NAME.schema.json. They are made from the typed values (names, types, and the docstrings' lines on each
field); `python -m onnxprune.report.schemas` writes them anew after a change.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from onnxprune.errors import BadInputError

NAMES = ("plan", "report", "sparsity-report", "profile-report", "explore-report", "comparison")


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema by its name. Raises `BadInputError` for other names."""
    if name not in NAMES:
        raise BadInputError(f"There is no schema '{name}'; choose {', '.join(NAMES)}.")
    found: dict[str, Any] = json.loads((files(__name__) / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found


def generated(name: str) -> dict[str, Any]:
    """The JSON Schema as the typed values say it now."""
    from onnxprune.cut.plan import Plan
    from onnxprune.model.typed_json import schema as schema_of
    from onnxprune.report.comparison import Comparison
    from onnxprune.report.explore import ExploreReport
    from onnxprune.report.profile import ProfileReport
    from onnxprune.report.report import Report
    from onnxprune.report.sparsity import SparsityReport

    kinds = {
        "plan": Plan,
        "report": Report,
        "sparsity-report": SparsityReport,
        "profile-report": ProfileReport,
        "explore-report": ExploreReport,
        "comparison": Comparison,
    }
    return schema_of(kinds[name])
