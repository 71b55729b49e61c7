"""Writes the schemas into the source tree."""

from __future__ import annotations

import json
from pathlib import Path

from onnxprune.pipeline.schemas import NAMES, generated

for name in NAMES:
    text = json.dumps(generated(name), indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / f"{name}.schema.json").write_text(text, encoding="utf-8")
