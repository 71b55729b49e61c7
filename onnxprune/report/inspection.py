"""What `onnxprune inspect` says of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.choose.costs import CostModel
from onnxprune.cut.plan import plan_groups
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.grouping import Group
from onnxprune.groups.units import Ids
from onnxprune.model.typed_json import plain
from onnxprune.ops import failures
from onnxprune.report.report import group_rows


def inspection(analysis: Analysis, costs: CostModel) -> dict[str, Any]:
    """Everything `onnxprune inspect` prints."""
    macs, params = costs.saving("macs"), costs.saving("params")
    members = {
        g.id: [{k: v for k, v in plain(m).items() if k != "removed"} | {"positions": len(m.removed)} for m in g.members]
        for g in plan_groups(analysis, np.ones(analysis.solution.count, bool))
    }
    rows = []
    for group, row in zip(analysis.groups, group_rows(analysis), strict=True):
        classes = _all_classes(analysis, group)
        rows.append(
            {k: v for k, v in plain(row).items() if k != "removed"}
            | {
                "macs": round(float(macs[classes].sum())),
                "params": round(float(params[classes].sum())),
                "members": members.get(group.id, []),
            }
        )
    return {
        "model_sha256": analysis.model.sha256,
        "macs": costs.macs(),
        "params": costs.params(),
        "groups": rows,
        "unknown_operators": list(analysis.unknown),
        "failed_rules": list(dict.fromkeys((*analysis.crashed, *failures.seen()))),
    }


def _all_classes(analysis: Analysis, group: Group) -> Ids:
    if group.kind != "rows":
        return group.classes
    child, parent = analysis.solution.children
    return np.unique(np.concatenate([group.classes, child[np.isin(parent, group.classes)]]))
