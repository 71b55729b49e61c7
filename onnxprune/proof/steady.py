"""Does a model give the same twice? Only then can another one be compared with it."""

from __future__ import annotations

from onnxprune.errors import BadInputError, VerificationError
from onnxprune.groups.observation import Feeds
from onnxprune.model.branches import showing
from onnxprune.model.check import describe
from onnxprune.model.loaded import LoadedModel
from onnxprune.proof.compare import TOLERANCE, error
from onnxprune.runtime import Session


def check_steady(model: LoadedModel, feeds: Feeds) -> None:
    """Raises `VerificationError` with the node that gives other values when the model runs again on the same inputs."""
    session = Session(model)
    if error(session.run(feeds), session.run(feeds)) <= TOLERANCE:
        return
    raise VerificationError(
        f"The original itself gives other outputs each time on the same inputs: {_first(model, feeds)} draws or remembers something, "
        "so nothing can be proved; give the node a seed, or make its result an input of the model, prune, and put the node back."
    )


def _first(model: LoadedModel, feeds: Feeds) -> str:
    """The first node whose result is another one in the second run."""
    nodes = model.proto.graph.node
    names = [o for node in nodes for o in node.output if o]
    try:
        session = Session(model.beside(showing(model.proto, names)))
        once, twice = (dict(zip(names, session.run(feeds, names), strict=True)) for _ in range(2))
    except BadInputError:
        return "a node"
    found = (n for n in nodes if any(o and error([once[o]], [twice[o]]) > TOLERANCE for o in n.output))
    node = next(found, None)
    return "a node" if node is None else describe(node).replace("Node", "node", 1)
