"""What was found, done and measured, for people (Markdown) and machines (JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
import onnx

from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import Budget
from onnxprune.choose.costs import CostModel
from onnxprune.cut.plan import Plan
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.units import Pin
from onnxprune.model.json_text import to_json
from onnxprune.model.save import stored_bytes
from onnxprune.ops import failures
from onnxprune.proof.verdict import Drop, Verdict
from onnxprune.repair.fits import Repair
from onnxprune.report.variant import Variant
from onnxprune.runtime.summary import summary

VARIANT_COLUMNS = ("bytes", "ms per run", "divergence", "other top-1", "loss")


@dataclass(frozen=True)
class Report:
    """`data` is plain JSON: groups, declined, check, cost, latency, seconds."""

    data: dict[str, Any]

    @staticmethod
    def make(
        analysis: Analysis,
        removed: Bools,
        plan: Plan,
        pruned: onnx.ModelProto,
        verdict: Verdict | None,
        times: list[list[float]] | None,
        seconds: dict[str, float],
        budget: Budget | None,
        include_inexact: bool,
        calibration: Calibration | None = None,
        repair: Repair | None = None,
        variants: Sequence[Variant] = (),
        depth: dict[str, Any] | None = None,
        mixed: int = 0,
        drop: Drop | None = None,
        warnings: Sequence[str] = (),
    ) -> Report:
        """mixed: blocks of units that were cut as principal directions. warnings: sentences for a person."""
        after = {g["id"]: g for g in plan.document["groups"]}
        groups = [
            row | {"removed": after[row["id"]]["removed"] if row["id"] in after else 0} for row in group_rows(analysis)
        ]
        whole = analysis.model.size_bytes
        cost = {
            "macs": plan.document.get("macs"),
            "params": plan.document.get("params"),
            "bytes": [whole, stored_bytes(pruned)],
        }
        data: dict[str, Any] = {
            "model_sha256": analysis.model.sha256,
            "target": None if budget is None else {budget.metric: budget.amount},
            "groups": [g for g in groups if g["removable"]],
            "declined": declined(analysis),
            "unknown_operators": list(analysis.unknown),
            "cost": cost,
            "seconds": {k: round(v, 3) for k, v in seconds.items()},
            "warnings": list(warnings),
        }
        if verdict is not None:
            data["check"] = {
                "error": verdict.error,
                "tolerance": verdict.tolerance,
                "exact": verdict.exact,
                "masked_activations": verdict.masked,
                "float_noise": verdict.noise,
            }
        if calibration is not None:
            samples = calibration.samples
            data["calibration"] = {
                "samples": samples.count,
                "made_samples": sum(samples.sizes) - samples.count,
                "held_out": sum(n for n, out in zip(samples.sizes, samples.held, strict=True) if out),
                "passes": calibration.passes,
                "tapped_tensors": len(calibration.tapped),
                "made_up": calibration.made_up,
                "mixed_blocks": mixed,
            }
        if repair is not None:
            fitted = [f for f in repair.fits if f.ridge is not None]
            data["repair"] = {
                "recover": repair.recover,
                "layers": len(repair.fits),
                "fitted": len(fitted) if repair.changed else 0,
                "damage": [repair.before, repair.after],
                "fits": [
                    {"layer": f.layer, "error": [f.before, f.after], "ridge": "bias" if f.ridge == inf else f.ridge}
                    for f in repair.fits
                ],
            }
        if drop is not None:
            data["drop"] = asdict(drop)
        if variants:
            data["variants"] = [asdict(v) for v in variants]
        if depth is not None:
            data["depth"] = depth
        if times is not None:
            data["latency_ms"] = summary(times)
        return Report(data)

    def to_json(self) -> str:
        return to_json(self.data)

    def summary_rows(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, kept or ratio)."""
        rows = []
        cost = self.data["cost"]
        for key, name in (("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes")):
            pair = cost.get(key)
            if pair and pair[1] is not None:
                share = f"{pair[1] / pair[0]:.1%}" if pair[0] else "-"
                rows.append((name, f"{pair[0]:,}", f"{pair[1]:,}", share))
        if "latency_ms" in self.data:
            t = self.data["latency_ms"]
            rows.append(("ms per run", f"{t['before']:.3f}", f"{t['after']:.3f}", _speed(t["speedup"])))
        return rows

    def check_line(self) -> str:
        check = self.data.get("check")
        if check is None:
            return "not checked"
        kind = "exact groups only" if check["exact"] else "with approximate groups, against their own reference"
        return f"equals the masked original to {check['error']:.1e} of the output's scale (allowed {check['tolerance']:.0e}; {kind})"

    def depth_lines(self) -> list[str]:
        """Layers and nodes that went, the largest first; how many were looked at."""
        depth = self.data.get("depth")
        if depth is None:
            return []
        rows, others = depth["bypassed"], depth["declined"]
        whole = self.data["cost"]["macs"][0]
        share = f"{sum(r['macs'] for r in rows) / whole:.1%} of the MACs" if whole else "no MACs"
        count = "1 bypass" if len(rows) == 1 else f"{len(rows)} bypasses"
        lines = [f"{count} ({sum(r['nodes'] for r in rows)} nodes, {share}); {len(others)} others looked at"]
        for r in sorted(rows, key=lambda r: -r["macs"]):
            lines.append(f"- '{r['tensor']}' is now '{r['by']}': {r['nodes']} nodes, {r['macs']:,} MACs")
        return lines

    def repair_lines(self) -> list[str]:
        """What the outputs were fitted with, and how far they are from the original's on samples that no fit saw."""
        lines = []
        calibration, repair = self.data.get("calibration"), self.data.get("repair")
        if calibration is not None:
            source = "made-up" if calibration["made_up"] else "calibration"
            more = f" and {calibration['made_samples']} patched from them" if calibration["made_samples"] else ""
            lines.append(f"{calibration['samples']} {source} samples{more}, {calibration['held_out']} of all held out")
        if calibration is not None and calibration["mixed_blocks"]:
            lines.append(f"{calibration['mixed_blocks']} blocks of units mixed into principal directions")
        if repair is not None:
            before, after = repair["damage"]
            on = (
                "held-out samples" if calibration is None or calibration["held_out"] else "the samples that were fitted"
            )
            lines.append(
                f"{repair['fitted']} of {repair['layers']} layers fitted ({repair['recover']}); divergence from the original "
                f"on {on} {before:.3g} -> {after:.3g}"
            )
        drop = self.data.get("drop")
        if drop is not None:
            lines.append(
                f"the loss is {drop['measured']:.3g} ({drop['metric']}, allowed {drop['allowed']:g}) on {drop['samples']} samples that "
                "no step has seen"
            )
        return lines

    def variant_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """(which, bytes, milliseconds, divergence, share of other top-1 answers, loss by the metric)."""
        return [
            (
                v["name"],
                f"{v['bytes']:,}",
                f"{v['ms']:.3f}",
                f"{v['divergence']:.3g}",
                "-" if v["top1"] is None else f"{v['top1']:.1%}",
                f"{v['loss']:.3g}",
            )
            for v in self.data.get("variants", [])
        ]

    def to_markdown(self) -> str:
        lines = ["# Pruning report", "", "| | before | after | kept |", "|---|---:|---:|---:|"]
        lines += [f"| {a} | {b} | {c} | {d} |" for a, b, c, d in self.summary_rows()]
        lines += ["", f"Check in ONNX Runtime: {self.check_line()}."]
        lines += [f"- {line}" for line in self.repair_lines()]
        lines += [f"- Warning: {line}." for line in self.data["warnings"]]
        if "variants" in self.data:
            lines += ["", "## Beside quantization", "", "| | " + " | ".join(VARIANT_COLUMNS) + " |"]
            lines += ["|---|---:|---:|---:|---:|---:|"]
            lines += ["| " + " | ".join(row) + " |" for row in self.variant_rows()]
        lines += self._depth_tables()
        lines += ["", "## Groups", ""]
        lines += ["| group | kind | where | units | removed | exact |", "|---|---|---|---:|---:|---|"]
        for g in self.data["groups"]:
            exact = "yes" if g["exact"] else "no"
            lines.append(
                f"| {g['id']} | {g['kind']} | {_cell(g['origin'])} | {g['units']} | {g['removed']} | {exact} |"
            )
        lines += ["", "## Declined", ""]
        if not self.data["declined"]:
            lines.append("Nothing: every group of more than one unit can be pruned.")
        for d in self.data["declined"]:
            remedy = f" Remedy: {d['remedy']}." if d["remedy"] else ""
            lines.append(f"- {d['units']} units of {d['groups']} group(s): {d['reason']}.{remedy}")
        if self.data["unknown_operators"]:
            lines += ["", "Operators without a rule: " + ", ".join(self.data["unknown_operators"][:20]) + "."]
        lines += ["", "## Seconds per stage", ""]
        lines += [f"- {k}: {v:.2f}" for k, v in self.data["seconds"].items()]
        return "\n".join(lines) + "\n"

    def _depth_tables(self) -> list[str]:
        depth = self.data.get("depth")
        if depth is None:
            return []
        lines = ["", "## Layers and nodes", ""]
        if depth["channels_alone"] is not None:
            lines += [
                f"Channels alone, at the same cost: divergence {depth['channels_alone']:.3g} on held-out samples.",
                "",
            ]
        lines += ["| tensor | is now | nodes gone | MACs gone | divergence when chosen |", "|---|---|---:|---:|---:|"]
        for r in depth["bypassed"]:
            names = f"| {_cell(r['tensor'])} | {_cell(r['by'])} "
            lines.append(f"{names}| {r['nodes']} | {r['macs']:,} | {_number(r['damage'])} |")
        lines += ["", "Looked at, and not bypassed:", "", "| tensor | could be | MACs | change | divergence | reason |"]
        lines.append("|---|---|---:|---:|---:|---|")
        for r in depth["declined"]:
            names = f"| {_cell(r['tensor'])} | {_cell(r['by'])} | {r['macs']:,} "
            lines.append(f"{names}| {_number(r['change'])} | {_number(r['damage'])} | {r['reason']} |")
        return lines


def _speed(ratio: float) -> str:
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.2f}x slower"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def group_rows(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "id": g.id,
            "kind": g.kind,
            "origin": g.origin,
            "units": g.units,
            "removable": g.removable,
            "exact": g.exact,
            "pins": [_pin(p) for p in g.pins],
        }
        for g in analysis.groups
    ]


def _pin(pin: Pin) -> dict[str, str]:
    return {"node": pin.node, "reason": pin.reason, "remedy": pin.remedy}


def declined(analysis: Analysis) -> list[dict[str, Any]]:
    """Reasons that keep whole groups, with how many units each holds."""
    found: dict[str, dict[str, Any]] = {}
    for group in analysis.groups:
        if group.removable:
            continue
        pins = group.pins or (Pin("", f"{group.origin} has too few units to lose one"),)
        for pin in pins[:1]:
            entry = found.setdefault(pin.reason, {"reason": pin.reason, "remedy": pin.remedy, "groups": 0, "units": 0})
            entry["groups"] += 1
            entry["units"] += group.units
    return sorted(found.values(), key=lambda d: -d["units"])


def inspection(analysis: Analysis, costs: CostModel) -> dict[str, Any]:
    """Everything `onnxprune inspect` prints."""
    from onnxprune.cut.plan import make_plan

    macs, params = costs.saving("macs"), costs.saving("params")
    everything = np.ones(analysis.solution.count, bool)
    members = {
        g["id"]: [
            {k: v for k, v in m.items() if k != "removed"} | {"positions": len(m["removed"])} for m in g["members"]
        ]
        for g in make_plan(analysis, everything, {}, {}, "").document["groups"]
    }
    rows = []
    for group, row in zip(analysis.groups, group_rows(analysis), strict=True):
        classes = _all_classes(analysis, group)
        rows.append(
            row
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


def _all_classes(analysis: Analysis, group: Group) -> np.ndarray[Any, np.dtype[np.int64]]:
    if group.kind != "rows":
        return group.classes
    child, parent = analysis.solution.children
    return np.unique(np.concatenate([group.classes, child[np.isin(parent, group.classes)]]))
