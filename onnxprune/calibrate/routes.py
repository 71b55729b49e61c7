"""Every sample along its own branches: which these are, and a session that runs it there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from onnx import ModelProto, helper

from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.bodies import open_bodies
from onnxprune.model.loaded import Model
from onnxprune.model.routing import Route, Routing, flatten, ifs, key_of
from onnxprune.runtime import Session


def flat_model(model: Model, samples: Sequence[Feeds]) -> tuple[ModelProto, Routing]:
    """The model with the branches that these samples take in place of its Ifs, and the route of each sample."""
    routes: list[dict[str, bool]] = [{} for _ in samples]
    asked: set[str] = set()
    while True:
        flat, routing = flatten(model.proto, routes)
        graph = flat.graph
        known = {t.name for t in graph.initializer} | {v.name for v in graph.input}
        known |= {o for n in graph.node for o in n.output}
        conditions = {key_of(n): n.input[0] for n in ifs(flat) if n.input[0] in known and key_of(n) not in asked}
        conditions = {key: name for key, name in conditions.items() if key not in routing.joins}
        if not conditions:
            return open_bodies(flat), routing
        asked |= conditions.keys()
        shown = {key: f"onnxprune_condition_{k}" for k, key in enumerate(conditions)}
        probe = ModelProto()
        probe.CopyFrom(flat)
        del probe.graph.output[:]
        # an Identity, as an initializer or input cannot be an output of some versions
        for key, name in conditions.items():
            probe.graph.node.append(helper.make_node("Identity", [name], [shown[key]]))
            probe.graph.output.append(helper.make_empty_tensor_value_info(shown[key]))
        guarded = {key: routing.guards.get(key, {}) for key in conditions}
        sessions = Routed(model.beside(probe), routing)
        for k, feeds in enumerate(samples):
            here = [key for key, guard in guarded.items() if guard.items() <= routing.routes[k].items()]
            values = sessions.run(k, feeds, [shown[key] for key in here])
            routes[k] |= {key: bool(np.asarray(v).all()) for key, v in zip(here, values, strict=True)}


class Routed:
    """Runs samples through a flat model, each along its own route; a session for each route."""

    def __init__(
        self,
        model: Model,
        routing: Routing,
        what: str = "the model",
        optimized: bool = False,
        shapes_first: bool = False,
    ) -> None:
        self.routing = routing
        self._model: Model | None = model
        self._open = partial(Session, optimized=optimized, shapes_first=shapes_first, what=what)
        self._sessions: dict[tuple[tuple[str, bool], ...], Session] = {}

    def run(self, sample: int, feeds: Feeds, outputs: Sequence[str]) -> list[Array | None]:
        """The values of `outputs` for a sample, by its number; None of those that are not on its route."""
        route: Route = self.routing.routes[sample] if self.routing.guards else {}
        mark = tuple(sorted(route.items()))
        if mark not in self._sessions:
            assert self._model is not None
            along = self._model.beside(self.routing.along(self._model.proto, route))
            if not self.routing.guards:
                self._model = None  # there is one session, and this takes as much as the file
            self._sessions[mark] = self._open(along)
        session = self._sessions[mark]
        there = [n for n in outputs if n in session.output_types]
        found = dict(zip(there, session.run(feeds, there) if there else [], strict=True))
        return [found.get(n) for n in outputs]
