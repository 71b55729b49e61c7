"""The plan: what leaves which tensor of the original file. Auditable, diffable, replayable.

    {"version": 1, "model_sha256": "…", "onnxprune": "0.1.0", "settings": {…},
     "groups": [{"id": "g12", "kind": "channels", "units": 64, "removed": 24, "exact": true, "classes": [7, 9, …],
                 "members": [{"tensor": "conv1.weight", "axis": 0, "removed": [3, 7, …], "node": "/conv1/Conv"}, …]}],
     "bypassed": [{"tensor": "/add2", "by": "/add1"}], "nodes_removed": ["/add2", …],
     "mixed": ["/q/MatMul_output_0", …], "refit": [["/conv1/Conv_output_0", 1], …], "refit_sha256": "…",
     "macs": [before, after], "params": [before, after]}

Members are constants (with the node that uses them, as shared constants may be cut differently per use) and every activation
of numbers (not flags) on which the removal is a slice of one axis.
`mixed` tensors have their units in other bases than the original's (`choose/mix.py`): what was removed are directions, not slices.
Where `bypassed` is not empty (`cut/bypass.py`), groups are those of the model that is left; its tensors have the original's names.
`classes` are the analysis' own numbers; `members` are what they mean, and a
replay checks that both still agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.cut.bypass import Bypass
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.maps import Facet, varying
from onnxprune.groups.units import Ids
from onnxprune.model.element_types import NUMBERS, kinds
from onnxprune.model.graph import name_of

VERSION = 1


@dataclass(frozen=True)
class Plan:
    """The JSON document, checked."""

    document: dict[str, Any]

    @property
    def refit(self) -> list[tuple[str, int]]:
        """(node key, input) of every constant that a repair fitted anew."""
        found = self.document.get("refit", [])
        is_pair = [isinstance(x, list) and len(x) == 2 and isinstance(x[0], str) and type(x[1]) is int for x in found]
        if not all(is_pair) or not all(0 <= i < 64 for _, i in found):
            raise BadInputError("The plan's 'refit' is not a list of [node, input].")
        return [(node, i) for node, i in found]

    @property
    def refit_sha256(self) -> str | None:
        """Digest of the fitted constants (`model/patch.py`); None in plans without any, and in those of older versions."""
        found = self.document.get("refit_sha256")
        return found if isinstance(found, str) else None

    @property
    def bypasses(self) -> list[Bypass]:
        """What the plan bypasses, unchecked but for its form."""
        found = self.document.get("bypassed", [])
        if not isinstance(found, list) or not all(
            isinstance(b, dict) and isinstance(b.get("tensor"), str) and isinstance(b.get("by"), str) for b in found
        ):
            raise BadInputError("The plan's 'bypassed' is not a list of {tensor, by}.")
        return [Bypass(b["tensor"], b["by"]) for b in found]

    @property
    def has_limit(self) -> bool:
        """Was the target a limit on the loss? Then some samples were set aside."""
        settings = self.document.get("settings", {})
        target = settings.get("target") if isinstance(settings, dict) else None
        return isinstance(target, dict) and "max_drop" in target

    @property
    def mixed(self) -> list[str]:
        """Tensors whose units are in other bases than the original's."""
        found = self.document.get("mixed", [])
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            raise BadInputError("The plan's 'mixed' is not a list of tensors.")
        return found

    def repaired(self, recover: str, refit: Sequence[tuple[str, int]], digest: str | None) -> Plan:
        """The same removal with another repair."""
        settings = self.document.get("settings", {})
        listed = [[node, i] for node, i in refit]
        is_same = self.document.get("refit", []) == listed and self.refit_sha256 == digest
        if settings.get("recover", "none") == recover and is_same:
            return self
        changed = {"settings": settings | {"recover": recover}, "refit": listed, "refit_sha256": digest}
        return Plan(self.document | changed)

    def to_json(self) -> str:
        """One line per member, so that plans can be diffed."""
        head = {k: v for k, v in self.document.items() if k != "groups"}
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
        groups = []
        for group in self.document["groups"]:
            own = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in group.items() if k != "members")
            members = ",\n   ".join(json.dumps(m) for m in group["members"])
            groups.append(f'  {{{own}, "members": [\n   {members}]}}')
        body = ",\n".join(groups)
        return "{\n" + ",\n".join([*lines, f' "groups": [\n{body}]']) + "\n}\n"

    @staticmethod
    def from_json(text: str, what: str = "the plan") -> Plan:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInputError(
                f"{what} is not JSON: {error}. Write one with 'onnxprune prune … --plan FILE'."
            ) from None
        needed = {"version": int, "model_sha256": str, "groups": list}
        if not isinstance(document, dict) or not all(isinstance(document.get(k), t) for k, t in needed.items()):
            raise BadInputError(f"{what} is not a plan: it needs {', '.join(needed)}.")
        if document["version"] != VERSION:
            raise BadInputError(f"{what} has version {document['version']}; this onnxprune reads version {VERSION}.")
        for group in document["groups"]:
            ok = isinstance(group, dict) and all(isinstance(group.get(k), list) for k in ("classes", "members"))
            if not ok or not all(type(c) is int and abs(c) < 1 << 40 for c in group["classes"]):
                raise BadInputError(f"{what} has a group without integer 'classes' or without 'members'.")
        return Plan(document)


def make_plan(
    analysis: Analysis,
    removed: Bools,
    costs: dict[str, list[int]],
    settings: dict[str, Any],
    version: str,
    refit: Sequence[tuple[str, int]] = (),
    bypasses: Sequence[Bypass] = (),
    nodes_removed: Sequence[str] = (),
    mixed: Sequence[str] = (),
    digest: str | None = None,
) -> Plan:
    """Describe a removal (bool per class) by the tensors it cuts. `refit`: (node key, input) of constants that were fitted anew.

    bypasses: those that made the model of the analysis; nodes_removed: keys of the original's nodes that are gone; mixed: tensors
    in other bases; digest: of the fitted constants.
    """
    owner = _owners(analysis, removed)
    members: dict[str, list[dict[str, Any]]] = {g.id: [] for g in analysis.groups}
    unit_owner = np.append(owner, -1)[analysis.solution.classes]
    numbers = {k: g.id for k, g in enumerate(analysis.groups)}
    for (node, i), (source, maps) in analysis.uses.items():
        for facet in maps:
            for group, axis, positions in _slices(facet, unit_owner):
                entry = {"tensor": name_of(source), "axis": axis, "removed": positions, "node": f"{name_of(node)}:{i}"}
                members[numbers[group]].append(entry)
    types = kinds(analysis.view)
    for key, maps in analysis.maps.items():
        if types.get(key, "") not in NUMBERS:  # flags and quantized values cannot be multiplied by a mask
            continue
        for facet in maps:
            for group, axis, positions in _slices(facet, unit_owner):
                members[numbers[group]].append({"tensor": name_of(key), "axis": axis, "removed": positions})
    groups = []
    for k, part in enumerate(analysis.groups):
        classes = np.flatnonzero(owner == k)
        if classes.size:
            groups.append(
                {
                    "id": part.id,
                    "origin": part.origin,
                    "kind": part.kind,
                    "units": part.units,
                    "removed": _units_removed(part, removed),
                    "exact": part.exact,
                    "classes": [int(c) for c in classes],
                    "members": members[part.id],
                }
            )
    return Plan(
        {
            "version": VERSION,
            "model_sha256": analysis.model.sha256,
            "onnxprune": version,
            "settings": settings,
            "bypassed": [{"tensor": b.tensor, "by": b.by} for b in bypasses],
            "nodes_removed": list(nodes_removed),
            "mixed": list(mixed),
            "refit": [[node, i] for node, i in refit],
            "refit_sha256": digest,
            **costs,
            "groups": groups,
        }
    )


def _units_removed(group: Group, removed: Bools) -> int:
    gone = [int(removed[b].all(axis=1).sum()) // t for b, t in zip(group.blocks, group.per_step, strict=True)]
    return min(gone)


def _owners(analysis: Analysis, removed: Bools) -> Ids:
    """The group that each removed class is listed under; classes that go with a row belong to the row's group."""
    owner = np.full(analysis.solution.count, -1, np.int64)
    for k, group in enumerate(analysis.groups):
        classes = group.classes
        owner[classes[removed[classes]]] = k
    child, parent = analysis.solution.children
    for k, group in enumerate(analysis.groups):
        if group.kind == "rows":
            for c in group.classes[removed[group.classes]]:
                owner[child[parent == c]] = k
    for _ in range(4):  # parents of offsets have no group: they follow their children
        loose = removed & (owner < 0)
        if not loose.any() or not child.size:
            break
        hit = loose[parent] & (owner[child] >= 0)
        owner[parent[hit]] = owner[child[hit]]
    return owner


def _slices(facet: Facet, owner: Ids) -> list[tuple[int, int, list[int]]]:
    """`(group, axis, positions)` for every group whose removal from this facet is a slice of one axis."""
    table = owner[facet]
    found = []
    for group in np.unique(table[table >= 0]):
        gone = table == group
        for axis in varying(facet):
            others = tuple(a for a in range(facet.ndim) if a != axis)
            whole, some = gone.all(axis=others), gone.any(axis=others)
            if (whole == some).all():
                found.append((int(group), axis, np.flatnonzero(whole).tolist()))
                break
    return found


def own_plan(plan: Plan, analysis: Analysis, what: str = "the plan") -> None:
    """Raise `BadInputError` where a plan was made for another file."""
    if plan.document["model_sha256"] != analysis.model.sha256:
        raise BadInputError(
            f"{what} was made for another file (sha256 {plan.document['model_sha256'][:12]}…, this one is "
            f"{analysis.model.sha256[:12]}…). Apply it to the model it was made from."
        )


def removed_by(plan: Plan, analysis: Analysis, what: str = "the plan") -> Bools:
    """The classes a plan removes, checked against what the analysis of this file allows."""
    own_plan(plan, analysis, what)
    count = analysis.solution.count
    removed = np.zeros(count, bool)
    for group in plan.document["groups"]:
        classes = np.array(group["classes"], np.int64)
        if classes.size and (classes.min() < 0 or classes.max() >= count):
            raise BadInputError(f"{what} names units that this model does not have (group {group.get('id')}).")
        removed[classes] = True
    if (removed & analysis.solution.pinned).any() or (analysis.solution.closure(removed) != removed).any():
        raise BadInputError(
            f"{what} removes units that have to stay together or stay; it was edited or made by another version."
        )
    again = make_plan(analysis, removed, {}, {}, "").document["groups"]
    want = [(g["id"], g["members"]) for g in again]
    have = [(g.get("id"), g["members"]) for g in plan.document["groups"]]
    if want != have:
        raise BadInputError(
            f"{what} lists members that do not belong to its units; it was edited or made by another version."
        )
    return removed
