"""What became zero, and what that is worth, for people (Markdown) and machines (JSON)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.cut.plan import Plan
from onnxprune.model.json_text import to_json
from onnxprune.proof.verdict import Verdict
from onnxprune.runtime.summary import summary
from onnxprune.sparsity.targets import Pattern, Target
from onnxprune.sparsity.weights import Left, Weight

RUNTIMES = (
    "ONNX Runtime multiplies zeros like any other number: this model is not faster in it. It is smaller on disk where it is stored "
    "sparse or compressed. For speed, remove whole channels: onnxprune prune, or --then-prune."
)
TENSORRT = (
    "TensorRT can run 2:4 weights on the sparse tensor cores of NVIDIA GPUs since Ampere (trtexec --sparsity=enable, half precision "
    "or 8 bits)."
)


@dataclass(frozen=True)
class Layer:
    """One weight: zeros before and after, out of `size`."""

    weight: Weight
    size: int
    zeros: tuple[int, int]
    criterion: str


@dataclass(frozen=True)
class Removed:
    """What `--then-prune` took away: the plan against the sparse model, and its proof."""

    plan: Plan
    verdict: Verdict | None
    difference: float


@dataclass(frozen=True)
class SparsityReport:
    """`data` is plain JSON: layers, left_alone, zeros, difference, bytes, latency_ms, pruned, seconds."""

    data: dict[str, Any]

    @staticmethod
    def make(
        target: Target,
        criterion: str,
        layers: list[Layer],
        left: list[Left],
        difference: dict[str, Any],
        sizes: dict[str, list[int]],
        stored: tuple[str, ...],
        removed: Removed | None,
        times: list[list[float]] | None,
        seconds: dict[str, float],
    ) -> SparsityReport:
        data: dict[str, Any] = {
            "target": str(target),
            "criterion": criterion,
            "zeros": {
                "weights": sum(x.size for x in layers),
                "before": sum(x.zeros[0] for x in layers),
                "after": sum(x.zeros[1] for x in layers),
            },
            "layers": [_row(x, stored) for x in layers],
            "left_alone": [{"tensor": x.tensor, "node": x.node, "reason": x.reason} for x in left],
            "difference": difference,
            "bytes": sizes,
            "runtimes": [RUNTIMES, TENSORRT] if isinstance(target, Pattern) and target.of == 4 else [RUNTIMES],
            "seconds": {k: round(v, 3) for k, v in seconds.items()},
        }
        if removed is not None:
            data["pruned"] = _pruned(removed)
        if times is not None:
            data["latency_ms"] = summary(times)
        return SparsityReport(data)

    def to_json(self) -> str:
        return to_json(self.data)

    def zeros_line(self) -> str:
        z = self.data["zeros"]
        count = len(self.data["layers"])
        share = z["after"] / max(z["weights"], 1)
        what = f"{share:.1%}; {self.data['target']}; {self.data['criterion']}"
        return f"{z['before']:,} -> {z['after']:,} of {z['weights']:,} weights in {count} layers ({what})"

    def difference_line(self) -> str:
        d = self.data["difference"]
        source = {True: "made-up", False: "held-out" if d["held_out"] else "given"}[d["made_up"]]
        top1 = "" if d["top1"] is None else f", another top class on {d['top1']:.1%}"
        on = f"{d['samples']} {source} samples"
        return f"by {d['error']:.2g} of the output's scale at most, divergence {d['divergence']:.3g}{top1} ({on})"

    def pruned_line(self) -> str:
        p = self.data["pruned"]
        if not p["units"]:
            return "nothing: no unit is zero as a whole, or unread"
        return (
            f"{p['units']} units of {len(p['groups'])} groups that were zero or unread; outputs equal the sparse model's to "
            f"{p['error']:.1e} of their scale"
        )

    def layer_rows(self) -> list[tuple[str, ...]]:
        """(weight, shape, zeros before, after, share, how)."""
        return [
            (
                row["tensor"],
                "×".join(map(str, row["shape"])),
                f"{row['zeros'][0]:,}",
                f"{row['zeros'][1]:,}",
                f"{row['zeros'][1] / max(row['weights'], 1):.1%}",
                row["criterion"] + (", stored sparse" if row["stored"] == "sparse" else ""),
            )
            for row in self.data["layers"]
        ]

    def summary_rows(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, ratio)."""
        names = {"file": "bytes", "compressed": "bytes, zipped"}
        rows = [(names[key], f"{a:,}", f"{b:,}", f"{b / max(a, 1):.1%}") for key, (a, b) in self.data["bytes"].items()]
        if "latency_ms" in self.data:
            t = self.data["latency_ms"]
            rows.append(("ms per run", f"{t['before']:.3f}", f"{t['after']:.3f}", f"{t['speedup']:.2f}x as fast"))
        return rows

    def to_markdown(self) -> str:
        lines = ["# Sparsity report", "", f"Zeros: {self.zeros_line()}.", f"Outputs differ {self.difference_line()}."]
        if "pruned" in self.data:
            lines.append(f"Then removed: {self.pruned_line()}.")
        lines += ["", "| | before | after | ratio |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in self.summary_rows()]
        lines += ["", *[f"- {line}" for line in self.data["runtimes"]], "", "## Weights", ""]
        lines += ["| weight | shape | zeros before | after | share | how |", "|---|---|---:|---:|---:|---|"]
        lines += [f"| {' | '.join(x.replace('|', chr(92) + '|') for x in row)} |" for row in self.layer_rows()]
        lines += ["", "## Left alone", ""]
        lines += [f"- {x['tensor']} ({x['node']}) {x['reason']}." for x in self.data["left_alone"]] or ["Nothing."]
        lines += ["", "## Seconds per stage", ""]
        lines += [f"- {k}: {v:.2f}" for k, v in self.data["seconds"].items()]
        return "\n".join(lines) + "\n"


def _row(layer: Layer, stored: tuple[str, ...]) -> dict[str, Any]:
    weight = layer.weight
    return {
        "tensor": weight.tensor,
        "node": weight.node,
        "input_axis": weight.axis,
        "shape": list(weight.shape),
        "uses": len(weight.uses) + weight.shared,
        "weights": layer.size,
        "zeros": list(layer.zeros),
        "criterion": layer.criterion,
        "stored": "sparse" if weight.tensor in stored else "dense",
    }


def _pruned(removed: Removed) -> dict[str, Any]:
    groups = [
        {"origin": g["origin"], "kind": g["kind"], "units": g["units"], "removed": g["removed"]}
        for g in removed.plan.document["groups"]
    ]
    return {
        "units": sum(g["removed"] for g in groups),
        "groups": groups,
        "error": removed.difference,
        "macs": removed.plan.document.get("macs"),
        "params": removed.plan.document.get("params"),
    }
