"""The commented config that `onnxprune init` writes, with what the model says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune import runtime
from onnxprune.model.loaded import LoadedModel
from onnxprune.words import counted

SCHEMA_FILE = "onnxprune.schema.json"
SHOWN = 6  # inputs, and reasons


@dataclass(frozen=True)
class Facts:
    """What was found out. model: path as the config says it. data: a file beside it that fits its inputs, if any."""

    model: str
    loaded: LoadedModel
    inspection: dict[str, Any]
    data: str | None


def starter(facts: Facts) -> str:
    """The text of the config."""
    stem = Path(facts.model).stem
    has_data = facts.data is not None
    target = 0.5 if has_data else 0.8
    data = f"data: {_text(facts.data)}" if facts.data else "# data: calib.npz"
    without = "" if has_data else "  # more than that needs inputs: set 'data' above"
    return "\n".join(
        [
            f"# yaml-language-server: $schema={SCHEMA_FILE}",
            "# onnxprune run prune.yaml     (the schema for editors: onnxprune schema config > onnxprune.schema.json)",
            "#",
            *(f"# {line}" for line in _facts(facts)),
            "version: 1",
            "",
            "models:",
            f"  - name: {_text(stem)}",
            f"    model: {_text(facts.model)}",
            "    # A .npz file with arrays named like the inputs, or a folder of them: a few dozen inputs without labels, as the",
            "    # model meets them in use. With them the weights that are left are repaired, and answers can be compared.",
            f"    {data}",
            "",
            "    # What is done, in this order: prune, sparsify, tune, quantize, each with the options of its command.",
            "    steps:",
            "      - prune:",
            f"          macs: {target}           # keep this share of the multiply-accumulates{without}",
            "          # speedup: 1.5        # or: so many times as fast, measured here",
            "          # max_drop: 0.01      # or: as small as this loss allows (with metric: top1)",
            "      # - tune: {minutes: 20}    # train what is left towards the original, without labels",
            "      # - quantize              # 8-bit weights and activations",
            "",
            "    # What must hold, or nothing is published and the command exits with 4.",
            "    gates:",
            '      max_size: "100%"          # of the original; or bytes, or "10 MB"',
            "      # min_speedup: 1.2",
            "      # max_latency: 5          # milliseconds",
            f"      {'' if has_data else '# '}fidelity: 0.9             # cosine similarity to the original's outputs, on data",
            "      # min_agreement: 0.98     # share of equal answers (classes), on data",
            "      # max_drop: 0.01          # by metric: kl, cosine, top1 or MODULE:FUNCTION, on data",
            "      # data: held_out.npz      # to judge on inputs that no step has seen",
            "",
            "    outputs:",
            f"      model: {_text(f'pruned/{stem}.onnx')}",
            f"      plan: {_text(f'pruned/{stem}.plan.json')}",
            f"      report: [{_text(f'pruned/{stem}.md')}, {_text(f'pruned/{stem}.json')}]",
            "",
            "junit: pruned/junit.xml",
            "",
        ]
    )


def _facts(facts: Facts) -> Iterator[str]:
    loaded, found = facts.loaded, facts.inspection
    proto = loaded.proto
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import)
    producer = " ".join(filter(None, (proto.producer_name, proto.producer_version)))
    yield f"What the model says: {loaded.size_bytes:,} bytes, opset {_shown(opsets)}{f', from {_shown(producer)}' if producer else ''}"
    for value in runtime.graph_inputs(proto)[:SHOWN]:
        sizes = [
            d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?")
            for d in value.type.tensor_type.shape.dim
        ]
        yield f"  input {_shown(value.name)}: [{_shown(', '.join(sizes))}]"
    groups = [g for g in found["groups"] if g["removable"]]
    units = sum(g["removable"] for g in groups)
    yield f"  {found['macs']:,} multiply-accumulates, {found['params']:,} parameters"
    yield f"  {counted(len(groups), 'group')} of channels, heads or neurons can be pruned, {counted(units, 'unit')} in all"
    pinned = [g for g in found["groups"] if not g["removable"] and g["pins"]]
    for reason in dict.fromkeys(str(g["pins"][0]["reason"]) for g in pinned[:SHOWN]):
        yield f"  not pruned: {_shown(reason)}"


def _text(value: str | None) -> str:
    """A text in YAML; what JSON quotes, YAML reads."""
    return json.dumps(value, ensure_ascii=False)


def _shown(text: str) -> str:
    """Fit for a comment: one line of printable characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= 110 else f"{shown[:109]}…"
