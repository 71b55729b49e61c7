"""Every operator of ai.onnx, and the others that have a rule, with how it is treated and what its rule gives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxprune import ops
from onnxprune.ops.gradients import GRADIENTS

PARTS = ("maps", "adjust", "macs", "linear", "weights", "gradient")


@dataclass(frozen=True)
class Row:
    """One operator. gives: those of `PARTS` that are there for it; missing: the others."""

    domain: str
    operator: str
    kind: str
    note: str
    gives: tuple[str, ...]
    missing: tuple[str, ...]


def listing() -> list[Row]:
    """One row per operator, registered ones included. Operators without a rule pin what they touch."""
    names = {("", s.name) for s in onnx.defs.get_all_schemas() if s.domain == ""} | set(ops.TABLE) | set(ops.REGISTERED)
    rows = []
    for domain, name in sorted(names):
        rule = ops.rule_for(name, domain)
        has = {part: getattr(rule, part, None) is not None for part in PARTS}
        has["maps"] = rule is not ops.UNKNOWN
        has["gradient"] = (f"{domain}::{name}" if domain else name) in GRADIENTS
        gives = tuple(part for part in PARTS if has[part])
        missing = tuple(part for part in PARTS if not has[part])
        rows.append(Row(domain or "ai.onnx", name, rule.kind, rule.note, gives, missing))
    return rows
