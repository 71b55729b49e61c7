"""The plan: what leaves which tensor of the original file. Auditable, diffable, replayable.

    {"version": 2, "model_sha256": "…", "onnxprune": "0.1.0", "settings": {…},
     "bypassed": [{"tensor": "/add2", "by": "/add1"}], "nodes_removed": ["/add2", …],
     "mixed": ["/q/MatMul_output_0", …], "refit": [["/conv1/Conv_output_0", 1], …], "refit_sha256": "…",
     "macs": [before, after], "params": [before, after],
     "groups": [{"id": "g12", "kind": "channels", "units": 64, "removed": 24, "exact": true, "classes": [7, 9, …],
                 "members": [{"tensor": "conv1.weight", "axis": 0, "removed": [3, 7, …], "node": "/conv1/Conv"}, …]}]}

`Plan` is that as a typed value; its fields have the names of the JSON's, and `report/schemas/plan.schema.json` is made from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from onnxprune.cut.bypass import Bypass
from onnxprune.cut.ports import ports
from onnxprune.cut.resolution import Resolution
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.maps import varying
from onnxprune.groups.units import Ids
from onnxprune.model.element_types import NUMBERS, kinds
from onnxprune.model.graph import name_of
from onnxprune.model.interface import Port
from onnxprune.model.typed_json import OTHERS, plain, typed

VERSION = 2
READ = (1, VERSION)  # format 1, of onnxprune 0.1.0, numbers units by the sizes of the inputs
MOST_INPUTS = 64  # of a node
T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """A number of the original and that of the result; in JSON, an array of two."""

    before: T
    after: T


class Refit(NamedTuple):
    """A constant that was fitted anew or trained: the `input`-th input of a node, named by its key (its first output)."""

    node: str
    input: int


class Rows(NamedTuple):
    """Positions along another axis of the same tensor; in JSON, an array of two."""

    axis: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Member:
    """One tensor that loses positions: a constant, or an activation of numbers (not flags) that is cut along one axis.

    tensor: its name in the original file.
    axis: the axis that gets shorter, from 0.
    removed: the positions that leave it, from 0, ascending.
    node: for constants, `NODE:INPUT` that reads it so (a shared constant may be cut differently for each reader).
    at: for constants whose rows lose different positions (the directions of an LSTM): the rows that lose these, as `[axis, positions]`.
        Other rows of the same tensor lose as many others, and are members of their own. Left out where all rows lose the same.
    """

    tensor: str
    axis: int
    removed: tuple[int, ...]
    node: str | None = None
    at: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class PlanGroup:
    """Units that can only be removed alike, and what went of them.

    id: the group's name in this analysis, such as `g12`.
    origin: the node and the axis that the units come from.
    kind: `channels` (positions of one axis), `blocks` (positions of each head alike) or `rows` (whole heads, convolution groups).
    units: how many there were.
    removed: how many of them are gone.
    exact: does the result equal the original with these units set to zero? Not where a norm is computed over them.
    classes: numbers of the removed units among all that can be removed; a replay checks that they still mean the same members.
    members: every tensor that gets smaller, and where.
    """

    id: str
    origin: str
    kind: str
    units: int
    removed: int
    exact: bool
    classes: tuple[int, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Plan:
    """What was removed from one file, enough to do it again (`prune(…, apply=plan)`) and to check it (`verify`).

    version: of this format, 2. In plans of version 1, `classes` hold at one size of the inputs only, and members have no `at`.
    model_sha256: of the original file; a plan applies to no other.
    groups: what left each group; where `bypassed` is not empty, groups are those of the model that is left.
    onnxprune: the version that wrote the plan.
    settings: the options it was made with, by name, and the `target` (`{"macs": 0.5}`); with a target of time, how it was met (`pace`).
    bypassed: tensors that were replaced by earlier ones, so that whole layers have no purpose (`--depth`).
    nodes_removed: keys (first outputs) of the original's nodes that are gone with them.
    mixed: tensors whose units are principal directions instead of the original's slices (`--mix`).
    refit: constants that the repair fitted anew, or that tuning changed (`--tune`).
    refit_sha256: digest of those constants; null where there are none, and in plans of older versions.
    macs: multiply-accumulates at the observed batch size, before and after.
    params: stored weights, before and after.
    interface: axes of inputs and outputs that got shorter (`--free`); left out where none did.
    resolution: at which the model works on its pictures (`--resolution`); left out where that is their own.
    notes: further fields that somebody wrote into the file; they are kept.
    """

    version: int
    model_sha256: str
    groups: tuple[PlanGroup, ...]
    onnxprune: str
    settings: dict[str, Any]
    bypassed: tuple[Bypass, ...]
    nodes_removed: tuple[str, ...]
    mixed: tuple[str, ...]
    refit: tuple[Refit, ...]
    refit_sha256: str | None
    macs: Pair[int] | None = None
    params: Pair[int] | None = None
    interface: tuple[Port, ...] = ()
    resolution: Resolution | None = None
    notes: dict[str, Any] = field(default_factory=dict, metadata=OTHERS)

    @property
    def set_aside(self) -> int:
        """Where the target was a limit on the loss, how many sources had to be set aside for it at least; else 0."""
        found = self.settings.get("set_aside")
        return found if isinstance(found, int) and found > 0 else 0

    def repaired(self, how: Mapping[str, Any], refit: Sequence[tuple[str, int]], digest: str | None) -> Plan:
        """The same removal with another repair. how: the settings that say which."""
        listed = tuple(Refit(*x) for x in refit)
        before = {k: self.settings.get(k, REPAIRS.get(k)) for k in how}
        if (before, self.refit, self.refit_sha256) == (how, listed, digest):
            return self
        return replace(self, settings=self.settings | dict(how), refit=listed, refit_sha256=digest)

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON file."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """One line per member, so that plans can be diffed."""
        document = self.to_dict()
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in document.items() if k != "groups"]
        groups = []
        for group in document["groups"]:
            own = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in group.items() if k != "members")
            members = ",\n   ".join(json.dumps(m) for m in group["members"])
            groups.append(f'  {{{own}, "members": [\n   {members}]}}')
        body = ",\n".join(groups)
        return "{\n" + ",\n".join([*lines, f' "groups": [\n{body}]']) + "\n}\n"

    @staticmethod
    def from_json(text: str, what: str = "the plan") -> Plan:
        """Read a plan. what: how messages call it. Raises `BadInputError` where the text is no plan of this version."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInputError(
                f"{what} is not JSON: {error}. Write one with 'onnxprune prune … --plan FILE'."
            ) from None
        needed = {"version": int, "model_sha256": str, "groups": list}
        if not isinstance(document, dict) or not all(isinstance(document.get(k), t) for k, t in needed.items()):
            raise BadInputError(f"{what} is not a plan: it needs {', '.join(needed)}.")
        if document["version"] not in READ:
            known = " and ".join(map(str, READ))
            raise BadInputError(f"{what} has version {document['version']}; this onnxprune reads versions {known}.")
        try:
            plan = typed(Plan, ABSENT | document, what)
        except BadInputError as fault:
            raise BadInputError(f"{str(fault)[:-1]}; it was edited or made by another version.") from None
        if not all(0 <= place.input < MOST_INPUTS for place in plan.refit):
            raise BadInputError(f"{what}: 'refit' names an input that no node has; it was edited.")
        return plan


REPAIRS: dict[str, Any] = {"recover": "none"}  # what plans that do not say it mean
ABSENT: dict[str, Any] = {  # of plans by older versions, and by hand
    "onnxprune": "",
    "settings": {},
    "bypassed": [],
    "nodes_removed": [],
    "mixed": [],
    "refit": [],
    "refit_sha256": None,
}


def plan_groups(analysis: Analysis, removed: Bools) -> tuple[PlanGroup, ...]:
    """Describe a removal (bool per class) by the tensors that it cuts; groups that lose nothing are left out."""
    owner = owners(analysis, removed)
    members: dict[int, list[Member]] = {k: [] for k in range(len(analysis.groups))}
    unit_owner = np.append(owner, -1)[analysis.solution.classes]
    for (node, i), (source, maps) in analysis.uses.items():
        for facet in maps:
            table = unit_owner[facet]
            for group in _groups_in(table):
                for axis, positions, at in _slice_of(table == group) or _rows_of(table == group):
                    members[group].append(Member(name_of(source), axis, positions, f"{name_of(node)}:{i}", at))
    types, graph = kinds(analysis.view), analysis.view.graph
    for key, maps in analysis.maps.items():
        if types.get(key, "") not in NUMBERS:  # flags and quantized values cannot be multiplied by a mask
            continue
        for facet in maps:
            if any(analysis.observation.is_dynamic(key, a) for a in varying(facet)):
                continue  # positions there change with the number of samples
            table = unit_owner[facet]
            for group in _groups_in(table):
                others = (table >= 0) & (table != group) if key in (*graph.inputs, *graph.outputs) else NONE
                for axis, positions, _ in _slice_of(table == group, others):
                    members[group].append(Member(name_of(key), axis, positions))
    found, removable = [], analysis.solution.removable
    for k, part in enumerate(analysis.groups):
        classes = tuple(np.flatnonzero(owner[removable] == k).tolist())
        if (owner == k).any():
            gone, exact = units_removed(part, removed), bool(part.exact)
            found.append(
                PlanGroup(part.id, part.origin, part.kind, part.units, gone, exact, classes, tuple(members[k]))
            )
    return tuple(found)


def units_removed(group: Group, removed: Bools) -> int:
    """How many steps of a group a removal takes."""
    gone = [int(removed[b].all(axis=1).sum()) // t for b, t in zip(group.blocks, group.per_step, strict=True)]
    return min(gone)


def owners(analysis: Analysis, removed: Bools) -> Ids:
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


NONE: Bools = np.zeros(1, bool)
Piece = tuple[int, tuple[int, ...], tuple[Rows, ...]]
"""Axis, positions that leave it, and the rows that lose them (none: all)."""


def _groups_in(table: Ids) -> list[int]:
    """The groups that own removed positions of a facet; -1 owns none."""
    return [int(g) for g in np.unique(table) if g >= 0]


def _slice_of(gone: Bools, with_others: Bools = NONE) -> list[Piece]:
    """The removal as positions of one axis; empty where it is none. with_others: what leaves with other groups."""
    for axis in varying(gone):
        others = tuple(a for a in range(gone.ndim) if a != axis)
        whole, some = (gone | with_others).all(axis=others) & gone.any(axis=others), gone.any(axis=others)
        if (whole == some).all():
            return [(axis, tuple(np.flatnonzero(whole).tolist()), ())]
    return []


def _rows_of(gone: Bools) -> list[Piece]:
    """The removal as positions of one axis, for each set of rows that lose the same ones."""
    axes = varying(gone)
    axis = next((a for a in reversed(axes) if _is_even(gone.sum(axis=a))), axes[-1])
    lines = np.moveaxis(gone, axis, -1)
    others = [a for a in range(gone.ndim) if a != axis]
    places: dict[tuple[int, ...], list[Ids]] = {}
    for place in np.argwhere(lines.any(axis=-1)):
        places.setdefault(tuple(np.flatnonzero(lines[tuple(place)]).tolist()), []).append(place)
    found: list[Piece] = []
    for positions, rows in places.items():
        table = np.array(rows)
        sides = [np.unique(column) for column in table.T]
        is_grid = len(table) == np.prod([len(side) for side in sides])
        for part in [sides] if is_grid else [[np.array([n]) for n in row] for row in rows]:
            at = tuple(Rows(a, tuple(p.tolist())) for a, p in zip(others, part, strict=True) if gone.shape[a] > 1)
            found.append((axis, positions, at))
    return found


def _is_even(counts: Ids) -> bool:
    """Every row that loses any loses as many."""
    return len(np.unique(counts[counts > 0])) <= 1


def own_plan(plan: Plan, analysis: Analysis, what: str = "the plan") -> None:
    """Raise `BadInputError` where a plan was made for another file."""
    if plan.model_sha256 != analysis.model.sha256:
        raise BadInputError(
            f"{what} was made for another file (sha256 {plan.model_sha256[:12]}…, this one is "
            f"{analysis.model.sha256[:12]}…). Apply it to the model it was made from."
        )


def removed_by(plan: Plan, analysis: Analysis, what: str = "the plan") -> Bools:
    """The classes a plan removes, checked against what the analysis of this file allows."""
    own_plan(plan, analysis, what)
    old = plan.version < VERSION
    blame = (
        "it was edited, or made by an older version with inputs of other sizes: give the --data or --input-shape of "
        "that time, or prune again with --plan"
        if old
        else "it was edited or made by another version"
    )
    count = analysis.solution.count
    numbered = np.arange(count) if old else analysis.solution.removable
    removed = np.zeros(count, bool)
    for group in plan.groups:
        classes = np.array(group.classes, np.int64)
        if classes.size and (classes.min() < 0 or classes.max() >= len(numbered)):
            raise BadInputError(f"{what} names units that this model does not have (group {group.id}): {blame}.")
        removed[numbered[classes]] = True
    if (removed & analysis.solution.pinned).any() or (analysis.solution.closure(removed) != removed).any():
        raise BadInputError(f"{what} removes units that have to stay together or stay; {blame}.")
    if _compared(plan_groups(analysis, removed), old) != _compared(plan.groups, old):
        raise BadInputError(f"{what} lists members that do not belong to its units; {blame}.")
    if ports(analysis, removed) != plan.interface:
        raise BadInputError(f"{what} says of inputs and outputs what does not follow from its members; {blame}.")
    return removed


def _compared(groups: tuple[PlanGroup, ...], old: bool) -> list[tuple[str, tuple[Member, ...]]]:
    """What a plan and its repetition must have in common. Format 1 has other ids, and no members of rows."""
    return [("" if old else g.id, tuple(m for m in g.members if not (old and m.at))) for g in groups]
