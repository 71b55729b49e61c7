"""Time the original and the pruned model where the user wants it, and see that the engine there computes what the CPU computes.

That a removal is right is proved on ONNX Runtime's CPU provider (`proof/prove.py`). Another provider or engine may compute in other
precision, or wrong: its outputs are compared with the CPU's, those of both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune import runtime
from onnxprune.clock import Share, unshared
from onnxprune.errors import VerificationError
from onnxprune.groups.observation import Feeds
from onnxprune.model.draws import draws
from onnxprune.model.interface import cut_feeds, interface_of, unmarked
from onnxprune.model.loaded import Model
from onnxprune.proof.compare import error

CLOSE = 0.05  # of an output's scale: products in bfloat16, layer after layer, stay below


@dataclass(frozen=True)
class Elsewhere:
    """Times of both models. differences: largest of each one's outputs there from those on the CPU, relative to the output's scale; None
    on the CPU itself, and where the engine gives no outputs or the model draws random numbers. samples: of a run.
    """

    runner: str
    times: tuple[runtime.Times, runtime.Times]
    differences: tuple[float, float] | None
    samples: int = 1


def is_reference(runner: runtime.Runner) -> bool:
    """Is it where correctness is proved anyway?"""
    return runner.key.get("engine") == "onnxruntime" and runner.key.get("provider") == "cpu"


def difference(runner: runtime.Runner, opened: runtime.Opened, model: Model, feeds: Feeds) -> float | None:
    """How far a model's outputs there are from those on the CPU; None as in `Elsewhere`."""
    if is_reference(runner) or draws(model.proto):
        return None
    found = opened.run()
    if found is None:
        return None
    wanted = runtime.Session(model.beside(unmarked(model.proto))).run(cut_feeds(interface_of(model.proto), feeds))
    return error(wanted, list(found))


@dataclass(frozen=True)
class Stopwatch:
    """Times the original and what was made of it.

    batch: samples of a run; as in the inputs where None. warmup: rounds that do not count.
    """

    runner: runtime.Runner
    batch: int | None = None
    warmup: int = 3

    def check(self, original: Model, feeds: Feeds | None = None) -> None:
        """Raise `BadInputError` for what could not be timed in the end, before anything takes long. feeds: once they are known: the
        original is tried on them, unless it runs on the CPU, where it has run.
        """
        runtime.check_batch(original.proto, self.batch)
        if feeds is not None and not (is_reference(self.runner) and self.batch is None):
            with runtime.opened_all(self.runner, [original], self._sized(original, feeds), ("the original",)) as opened:
                runtime.checked(opened[0].time(1))

    def timed(self, models: Sequence[Model], feeds: Feeds, share: Share = unshared) -> Elsewhere:
        """models: the original and the other, as `marked` (`model/interface.py`).

        Raises `VerificationError` where the engine's outputs of the other are not close to the CPU's, `BadInputError` where it fails.
        """
        runner, fed, names = self.runner, self._sized(models[0], feeds), ("the original", "the result")
        with runtime.opened_all(runner, models, fed, names) as opened:
            pairs = zip(opened, models, strict=True)
            before, after = (difference(runner, there, model, fed) for there, model in pairs)
            check_close(runner, before, after)
            times = runtime.in_turn(opened, warmup=0 if runner.warms_up else self.warmup, share=share)
        apart = None if before is None or after is None else (before, after)
        return Elsewhere(runner.name, (times[0], times[1]), apart, runtime.samples_in(models[0].proto, fed))

    def latency(self, models: Sequence[Model], feeds: Feeds, names: Sequence[str]) -> list[runtime.Times]:
        """Of models that are made of the first, in turn; their outputs are not looked at."""
        fed = self._sized(models[0], feeds)
        return runtime.latency(self.runner, models, fed, warmup=self.warmup, names=names)

    def _sized(self, original: Model, feeds: Feeds) -> Feeds:
        return runtime.with_batch(original.proto, feeds, self.batch)


def check_close(runner: runtime.Runner, before: float | None, after: float | None) -> None:
    """Raise `VerificationError` where an engine's outputs of the result are not close to the CPU's: neither within `CLOSE` nor within
    twice what they are apart for the original.
    """
    if after is not None and not after <= max(CLOSE, 2 * (before or 0.0)):
        raise VerificationError(
            f"{runner.name} computes other outputs of the result than ONNX Runtime's CPU: they differ by {after:.2g} of their scale (those"
            f" of the original: {before or 0.0:.2g}), so nothing was written; time on another --provider or --runner, or give options with"
            " which it computes in float32."
        )
