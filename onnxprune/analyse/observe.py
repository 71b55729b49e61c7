"""A model and what two inputs show of it: its groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from onnxprune import runtime
from onnxprune.analyse import feeds as feeding
from onnxprune.analyse.freed import freed
from onnxprune.analyse.scope import Scope
from onnxprune.analyse.walk import analyse
from onnxprune.clock import Share, unshared
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Feeds, Observation
from onnxprune.model.loaded import LoadedModel
from onnxprune.ops import failures


def analysis_of(
    loaded: LoadedModel, scope: Scope, feeds: tuple[Feeds, Feeds] | None = None, share: Share = unshared
) -> Analysis:
    """`feeds`: what to observe a part of a model with that has been observed as a whole. share: told how much is done."""
    if feeds is None:
        failures.begin()
        check_globs(loaded, scope)

    def observed(wanted: set[str], typed: set[str]) -> Observation:
        probe = runtime.Probe(loaded, wanted, typed)
        share(0.2)
        return probe.observation(feeds or feeds_of(loaded, scope, probe))

    return analyse(
        loaded,
        observed,
        scope.include_inexact,
        exclude=_matcher(scope.exclude),
        include=_matcher(scope.include),
        free=freed(loaded.proto, scope.free),
        share=share,
    )


def feeds_of(
    loaded: LoadedModel, scope: Scope, session: runtime.Session | runtime.Probe | None = None
) -> tuple[Feeds, Feeds]:
    """Two inputs to observe: the user's first samples, completed by random ones that differ in the dynamic dimensions."""
    if scope.data is None:
        return runtime.find_feeds(loaded, scope.input_shapes, scope.seed, session)
    inputs = runtime.graph_inputs(loaded.proto)
    feeds = feeding.load_data(scope.data, inputs)
    first = feeding.twice(feeding.take(feeds[0], inputs, 2), inputs)
    second = feeding.take(feeds[0], inputs, 3)
    others = [{v.name: feed[v.name] for v in inputs} for feed in feeds[1:]]
    session = session or runtime.Session(loaded)
    try:
        session.run(first)
    except BadInputError:  # a first axis need not be the batch: take the feed as it is
        first = second = {v.name: feeds[0][v.name] for v in inputs}
        session.run(first)
    shapes = {k: v.shape for k, v in first.items()}
    try:
        found = runtime.vary(session, inputs, shapes, scope.seed)
    except BadInputError:
        found = None
    if found is None and others:  # random values will not do: of the user's own, what differs most
        found = max(others, key=lambda feed: sum(v.shape != shapes[k] for k, v in feed.items()))
    return first, second if found is None else found


def _matcher(globs: Sequence[str]) -> Callable[[str], bool] | None:
    if not globs:
        return None
    return lambda name: any(fnmatchcase(name, g) for g in globs)


def check_globs(loaded: LoadedModel, scope: Scope) -> None:
    """A pattern that names nothing is a typing error."""
    graph = loaded.proto.graph
    names = {n.name for n in graph.node} | {t.name for t in graph.initializer}
    names |= {x for n in graph.node for x in (*n.input, *n.output)}
    names |= {x.name for n in graph.node for a in n.attribute for x in a.g.node}
    names |= {y for n in graph.node for a in n.attribute for x in a.g.node for y in (*x.input, *x.output)}
    for option, globs in (("--include", scope.include), ("--exclude", scope.exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise BadInputError(
                    f"{option} '{glob}' matches no node and no tensor; 'onnxprune inspect' lists names."
                )
