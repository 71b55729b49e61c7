"""What holds models back: python tests/benchmarks/pins.py GRAPH.onnx GRAPH.onnx.z FOLDER … --out tests/benchmarks/pins.md

Every graph is analysed; nothing is pruned. A row is a kind of pin: a sentence of `onnxprune inspect` without the names in it. Its
share of a graph's MACs (or parameters) is that of the layers with weights, times the share of a layer's channels that stay for this
reason, on average over its input and its output axis. Where channels carry no unit (what stays is not followed on), the reason is looked for
upstream. A channel that stays for several reasons counts for each of them; "alone" is the part for which there is no other.
The table goes to stdout as Markdown, largest share first (`--out FILE` writes it).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from onnxprune.analyse.observe import analysis_of  # noqa: E402
from onnxprune.analyse.scope import Scope  # noqa: E402
from onnxprune.choose.costs import CostModel  # noqa: E402
from onnxprune.groups.analysis import Analysis  # noqa: E402
from onnxprune.groups.grouping import Group  # noqa: E402
from onnxprune.groups.units import Ids  # noqa: E402
from onnxprune.model.graph import Node  # noqa: E402
from onnxprune.model.load import load  # noqa: E402
from tests.benchmarks.stripped import SUFFIX, load_graph  # noqa: E402

SMALL = 0.005  # shares below are left out of the table


@dataclass
class Held:
    """What one kind of pin holds of one graph, in MACs and parameters; `alone`: of the MACs, what nothing else holds."""

    macs: float = 0.0
    params: float = 0.0
    alone: float = 0.0
    examples: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("graphs", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("--each", action="store_true", help="a table for every graph too")
    parser.add_argument("--include-inexact", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {name: held(source, arguments.include_inexact) for name, source in graphs(arguments.graphs)}
    lines = [f"onnxprune {onnxprune.__version__}, {len(found)} graphs.", "", *whole(found)]
    if arguments.each:
        for name, kinds in found.items():
            lines += ["", f"## {name}", "", *table(kinds)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def graphs(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.name.endswith((SUFFIX, ".onnx"))) if path.is_dir() else [path]
        for p in inside:
            print(p.name, file=sys.stderr, flush=True)
            yield p.name.removesuffix(SUFFIX).removesuffix(".onnx"), p


def held(path: Path, include_inexact: bool) -> dict[str, Held]:
    """Shares of the graph by kind of pin."""
    model: Path | onnx.ModelProto = load_graph(path) if path.name.endswith(SUFFIX) else path
    analysis = analysis_of(load(model), Scope(include_inexact=include_inexact))
    costs = CostModel(analysis)
    params = costs.per_node("params")
    reasons = _Reasons(analysis)
    kinds: dict[str, Held] = defaultdict(Held)
    for node in analysis.view.graph.walk():
        for i, axis, size in weight_axes(analysis, node) if node.key in costs.node_macs else ():
            for names, positions in reasons.of(node, i, axis, size).items():
                part = positions / size / 2
                for kind, example in {kind_of(n): n for n in sorted(names, reverse=True)}.items():
                    entry = kinds[kind]
                    macs = part * costs.node_macs[node.key] / costs.macs()
                    entry.macs += macs
                    entry.params += part * params.get(node.key, 0.0) / costs.params()
                    entry.alone += macs if len({kind_of(n) for n in names}) == 1 else 0.0
                    entry.examples.append(example)
    return dict(kinds)


def weight_axes(analysis: Analysis, node: Node) -> Iterator[tuple[int, int, int]]:
    """(input, axis, size) of the two first axes of every weight that a node multiplies by: its channels."""
    for i, key in enumerate(node.inputs):
        source = analysis.sources.get(key)
        shape = () if source is None else tuple(analysis.view.constants[source].shape)
        if i and len(shape) >= 2:
            yield from ((i, axis, n) for axis, n in enumerate(shape[:2]) if n > 1)


class _Reasons:
    """Why positions of weights stay."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.makers = {key: node for node in analysis.view.graph.walk() for key in node.outputs if key}
        self.of_class: dict[int, frozenset[str]] = {}
        child, parent = analysis.solution.children
        leave = np.zeros(analysis.solution.count, bool)  # alone, or with a row
        for group in analysis.groups:
            leave[np.setdiff1d(group.classes, held_classes(group))] = True
        for _ in range(3):
            leave[child[leave[parent]]] = True
        for group in analysis.groups:
            names = frozenset(pin.reason for pin in group.pins)
            for c in held_classes(group).tolist() if names else ():
                if not leave[c]:
                    self.of_class[c] = self.of_class.get(c, frozenset()) | names

    def of(self, node: Node, i: int, axis: int, size: int) -> dict[frozenset[str], int]:
        """How many positions along an axis of weight `i` stay, by their reasons."""
        analysis = self.analysis
        found = analysis.uses.get((node.key, i))
        facets = [] if found is None else [f for f in found[1] if f.shape[axis] > 1]
        count: dict[frozenset[str], int] = defaultdict(int)
        if not facets:
            count[self.upstream(node)] = size
            return count
        classes = analysis.solution.classes
        lines = [np.moveaxis(classes[f], axis, 0).reshape(size, -1)[:, 0] for f in facets]
        for position in range(size):
            mine = [int(line[position]) for line in lines]
            if all(c < 0 or c in self.of_class or analysis.solution.pinned[c] for c in mine):
                known = [self.of_class[c] for c in mine if c in self.of_class]
                count[frozenset().union(*known) if known else self.upstream(node)] += 1
        return count

    def upstream(self, node: Node) -> frozenset[str]:
        """The reasons of what stays nearest before a node."""
        analysis, seen = self.analysis, set(node.inputs)
        layer = [k for k in node.inputs if k not in analysis.sources]
        while layer:
            names: set[str] = set()
            for key in layer:
                for facet in analysis.maps.get(key, ()):
                    for c in np.unique(analysis.solution.classes[facet]).tolist():
                        names |= self.of_class.get(c, frozenset())
                if key in analysis.view.graph.inputs:
                    names.add(f"graph input '{key}' keeps its shape")
            if names:
                return frozenset(names)
            before = [k for key in layer if key in self.makers for k in self.makers[key].inputs if k]
            layer = [k for k in dict.fromkeys(before) if k not in seen and k not in analysis.sources]
            seen.update(layer)
        return frozenset({"no reason was found"})


def held_classes(group: Group) -> Ids:
    """Classes of a group that may not leave."""
    none = np.empty(0, np.int64)
    if not group.removable:
        return group.classes
    return np.unique(np.concatenate([none, *(b[~f].ravel() for b, f in zip(group.blocks, group.free, strict=True))]))


def kind_of(reason: str) -> str:
    """The sentence without names and numbers."""
    return re.sub(r"\d+", "N", re.sub(r" ?'[^']*'", "", re.sub(r" ?\('[^']*'\)", "", reason)))


def whole(found: dict[str, dict[str, Held]]) -> list[str]:
    """One row per kind of pin over all graphs: the mean share, and the graphs of which it holds most."""
    kinds = {kind for each in found.values() for kind in each}
    rows = []
    for kind in kinds:
        of = {name: each[kind] for name, each in found.items() if kind in each}
        mean = {m: sum(getattr(h, m) for h in of.values()) / len(found) for m in ("macs", "params", "alone")}
        worst = sorted(of, key=lambda name: -of[name].macs)[:3]
        names = ", ".join(f"{name} {of[name].macs:.2f}" for name in worst)
        rows.append((mean["macs"], mean["params"], mean["alone"], len(of), kind, names))
    lines = [
        "| pin | graphs | MACs, mean | alone | parameters, mean | most of (MACs) |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for macs, params, alone, count, kind, names in sorted(rows, key=lambda r: (-r[0], r[4])):
        if max(macs, params) * len(found) >= SMALL:
            lines.append(f"| {kind} | {count} | {macs:.4f} | {alone:.4f} | {params:.4f} | {names} |")
    return lines


def table(kinds: dict[str, Held]) -> list[str]:
    lines = ["| pin | MACs | alone | parameters | for example |", "|---|---:|---:|---:|---|"]
    for kind, h in sorted(kinds.items(), key=lambda item: -item[1].macs):
        if max(h.macs, h.params) >= SMALL:
            lines.append(f"| {kind} | {h.macs:.3f} | {h.alone:.3f} | {h.params:.3f} | {h.examples[0]} |")
    return lines


if __name__ == "__main__":
    main()
