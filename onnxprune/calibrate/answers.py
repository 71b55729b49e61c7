"""What several models answer to the same inputs, and how often they agree."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.calibrate.damage import Metric, Outputs, disagreement, divergence, has_classes
from onnxprune.calibrate.judging import Judged
from onnxprune.clock import Share, unshared
from onnxprune.groups.observation import Feeds
from onnxprune.model.loaded import Model


def answers(
    judged: Judged, models: Sequence[tuple[str, Model]], feeds: Sequence[Feeds], share: Share = unshared
) -> list[Outputs]:
    """By model, what it gives for `judged.names` on each of the feeds; models are loaded one after the other.

    models: each with what messages call it. share: told how much is done.
    """
    found: list[Outputs] = []
    for k, (what, model) in enumerate(models):
        session = judged.session(model, what)
        found.append([session(f) for f in feeds])
        share((k + 1) / len(models))
    return found


def other_classes(judged: Judged, reference: Outputs, found: Outputs) -> float | None:
    """Share (0 to 1) of answers with another class than in the reference; None where what the model is judged by has no classes."""
    return judged.by_tensors(disagreement)(reference, found) if judges_classes(judged, reference) else None


def measures(judged: Judged, reference: Outputs) -> dict[str, Metric]:
    """Ways to say how far a model is from the original: its `divergence`, and the share of other `classes` where it has any."""
    found = {"divergence": judged.by_tensors(divergence)} if judged.tensors else {}
    if judges_classes(judged, reference):
        found["classes"] = judged.by_tensors(disagreement)
    return found


def judges_classes(judged: Judged, reference: Outputs) -> bool:
    """Has what the model is judged by classes? reference: what the original gives for `judged.names`, one sample at least."""
    return has_classes([row[: len(judged.tensors)] for row in reference[:1]])
