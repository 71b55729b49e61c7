"""Every operator of ai.onnx, and the others that have a rule, with how it is treated."""

from __future__ import annotations

import onnx

from onnxprune import ops


def listing() -> list[dict[str, str]]:
    """One row per operator: domain, operator, kind, note. Operators without a rule pin what they touch."""
    names = {("", s.name) for s in onnx.defs.get_all_schemas() if s.domain == ""} | set(ops.TABLE)
    rows = []
    for domain, name in sorted(names):
        rule = ops.rule_for(name, domain)
        rows.append({"domain": domain or "ai.onnx", "operator": name, "kind": rule.kind, "note": rule.note})
    return rows
