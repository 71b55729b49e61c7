"""JSON Schemas (draft 2020-12) of the config that `onnxprune run` reads and of the report that it writes: `config` and `run-report`.

They lie beside this file as NAME.schema.json, made from the typed values; `python -m onnxprune.pipeline.schemas` writes them anew after a
change. `schema` also gives those of `onnxprune.report.schemas`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from onnxprune.report import schemas

NAMES = ("config", "run-report")


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema by its name. Raises `BadInputError` for other names."""
    if name not in NAMES:
        return schemas.schema(name)
    found: dict[str, Any] = json.loads((files(__name__) / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found


def generated(name: str) -> dict[str, Any]:
    """The JSON Schema as the typed values say it now."""
    from onnxprune.model.typed_json import schema as schema_of
    from onnxprune.pipeline.config import Config
    from onnxprune.pipeline.record import RunReport

    if name == "config":
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return schema_of(RunReport)
