"""AdamW with a warm-up and a cosine schedule, on batches that another thread prepares; the best state by held-out loss wins.

Steps depend on the seed and the step's number alone, so that a run continued from a checkpoint ends as if it had not stopped.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxprune.clock import Step
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array
from onnxprune.training.functions.base import Tensor
from onnxprune.training.network import Network

AHEAD = 3
RISE = 1.25  # times the held-out loss of a good start
LESS = 0.25  # of the rate
SPARSE = 0.05
SMALL = 1e-3  # a weight counts as at least so large, or what is zero would stay zero


@dataclass(frozen=True)
class Schedule:
    """rate: AdamW's largest learning rate, after `warmup` of the steps; it falls to 0 along a cosine. evaluations: how often the held-out
    samples judge. patience: stop after so many of these without a new best (0: never). minutes: stop by then, the schedule
    fitted to it (then the result depends on the machine's speed); where none are left, no step is made.
    clip: largest norm of a step's gradient.
    is_relative: the rate is in units of the root mean square of each weight, of a start that is good; steps that take the held-out loss
    to `RISE` times what it was there are undone, and a quarter as large from then on.
    """

    steps: int = 3000
    rate: float = 2e-3
    decay: float = 1e-2
    warmup: float = 0.05
    clip: float = 5.0
    evaluations: int = 20
    patience: int = 8
    minutes: float | None = None
    seed: int = 0
    is_relative: bool = False


@dataclass(frozen=True)
class Trained:
    """What a run left in the network, and how it went. stopped: why it ended."""

    before: float
    after: float
    best_step: int
    steps: int
    seconds: float
    stopped: str
    history: tuple[tuple[int, float, float], ...]  # step, training loss since the last, held-out loss


@dataclass
class State:
    """All that a run needs to go on. best: parameters by key."""

    step: int = 0
    before: float = math.inf
    best_loss: float = math.inf
    best_step: int = 0
    best: dict[str, Array] = field(default_factory=dict)
    history: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0


Loss = Callable[[Any], Iterator[Tensor]]


def train(
    network: Network,
    prepare: Callable[[int], Any],
    losses: Loss,
    judge: Callable[[], float],
    schedule: Schedule,
    progress: Callable[[str], None],
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train the network's parameters in place and leave the best ones in it.

    prepare: the batch of a step, made in another thread. losses: its loss in parts (micro-batches), each a scalar that is its share
    of the batch's. judge: the held-out loss of the network as it is.
    """
    assert checkpoint is None or not schedule.is_relative  # of a rate that falls nothing is kept
    optimizer, parameters = _optimizer(network, schedule)
    masks = zeros(network)
    state = State()
    if checkpoint is not None:
        checkpoint.restore(network, optimizer, state)
    if not state.best:
        state.before = state.best_loss = judge()
        state.best = network.values()
    every = max(1, schedule.steps // max(schedule.evaluations, 1))
    running: list[float] = []
    stopped, begin, since = "all steps done", time.perf_counter() - state.seconds, state.step
    last_judged = time.perf_counter()
    for batch in _ahead(prepare, state.step):
        done = _share(schedule, state.step, time.perf_counter() - begin)
        if done >= 1:
            stopped = stopped if state.step >= schedule.steps else "out of time"
            break
        loss = _step(optimizer, parameters, losses(batch), masks, schedule, done)
        if not math.isfinite(loss):
            stopped = f"the loss was no longer finite at step {state.step}"
            break
        running.append(loss)
        state.step += 1
        losses_now = f", loss {np.mean(running[-50:]):.4f}, held-out {state.best_loss:.4f}"
        progress(Step("train", done, losses_now))
        due = (
            schedule.minutes is not None
            and time.perf_counter() - last_judged > 60 * schedule.minutes / schedule.evaluations
        )
        if state.step % every == 0 or due:
            _judged(network, state, judge(), float(np.mean(running[-every:])))
            last_judged = time.perf_counter()
            state.seconds = last_judged - begin
            if checkpoint is not None:
                checkpoint.write(network, optimizer, state)
            if schedule.is_relative and state.history[-1][2] > RISE * state.before:
                network.load(state.best)
                schedule = replace(schedule, rate=LESS * schedule.rate)
                optimizer, parameters = _optimizer(network, schedule)
            elif schedule.patience and _stale(state) >= schedule.patience:
                stopped = "no gain on held-out samples"
                break
    if state.step > max((h[0] for h in state.history), default=since):
        _judged(network, state, judge(), float(np.mean(running[-every:])))
    network.load(state.best)
    seconds = time.perf_counter() - begin
    return Trained(state.before, state.best_loss, state.best_step, state.step, seconds, stopped, tuple(state.history))


def _ahead(prepare: Callable[[int], Any], start: int) -> Iterator[Any]:
    """Batches from `start` on, a few of them made ahead by one other thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Any]] = [pool.submit(prepare, start + k) for k in range(AHEAD)]
        step = start + AHEAD
        try:
            while True:
                waiting.append(pool.submit(prepare, step))
                step += 1
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _share(schedule: Schedule, step: int, seconds: float) -> float:
    """How much of the run is over."""
    by_steps = step / max(schedule.steps, 1)
    if schedule.minutes is None:
        return by_steps
    return max(by_steps, seconds / (60 * schedule.minutes)) if schedule.minutes > 0 else 1.0


def _optimizer(network: Network, schedule: Schedule) -> tuple[Any, list[Tensor]]:
    frozen = {f.key for f in network.frozen()}
    groups: list[dict[str, Any]] = []
    for is_matrix in (True, False):
        some: list[Tensor] = [
            p for k, p in network.parameters.items() if network.weights[k].is_matrix == is_matrix and k not in frozen
        ]
        decay = {"weight_decay": schedule.decay if is_matrix else 0.0}
        if schedule.is_relative:
            groups += [group | decay for group in relative(some, schedule.rate)]
        elif some:
            groups.append({"params": some, "scale": schedule.rate} | decay)
    parameters = [p for group in groups for p in group["params"]]
    if not parameters:
        raise BadInputError(
            "Nothing can be trained: no gradient reaches any weight of this model; if they are integer codes, fine-tune before quantizing."
        )
    return torch.optim.AdamW(groups, lr=schedule.rate), parameters


def relative(parameters: Sequence[Tensor], rate: float) -> list[dict[str, Any]]:
    """A group of the optimizer for each, whose largest step is `rate` times the root mean square of its values ("scale").

    Layers whose scales were folded into them differ by orders of magnitude; Adam's steps do not look at that (Shazeer and Stern,
    "Adafactor", 2018, section 8).
    """
    found = []
    for parameter in parameters:
        size = float(parameter.detach().square().mean().sqrt())
        found.append({"params": [parameter], "scale": rate * max(size, SMALL), "lr": rate * max(size, SMALL)})
    return found


def set_rates(optimizer: Any, done: float, warmup: float, first: float = 1e-3) -> None:
    """Rates of a step: they rise for `warmup` of the schedule, from `first` of it on, and fall along a cosine. done: what of it is over."""
    rising = min(1.0, (done + first) / warmup) if warmup else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * rising * (1 + math.cos(math.pi * done)) / 2


def zeros(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Sparse matrices and where they are not zero: what was made sparse stays so."""
    found = []
    for key, parameter in network.parameters.items():
        mask = parameter.detach() != 0
        if network.weights[key].is_matrix and SPARSE <= 1 - float(mask.float().mean()) < 1:
            found.append((parameter, mask))
    return found


def _step(
    optimizer: Any,
    parameters: Sequence[Tensor],
    losses: Iterator[Tensor],
    masks: Sequence[tuple[Tensor, Tensor]],
    schedule: Schedule,
    done: float,
) -> float:
    set_rates(optimizer, done, schedule.warmup)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    for parameter, mask in masks:
        if parameter.grad is not None:
            parameter.grad.mul_(mask)
    torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
    if math.isfinite(total):
        optimizer.step()
    return total


def _judged(network: Network, state: State, held: float, loss: float) -> None:
    state.history.append((state.step, loss, held))
    if held < state.best_loss:
        state.best_loss, state.best_step, state.best = held, state.step, network.values()


def _stale(state: State) -> int:
    """Judgements since the best one of the training itself: a good start may only be passed towards the end of the schedule."""
    held = [h for _, _, h in state.history]
    return len(held) - 1 - int(np.argmin(held)) if held else 0


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run's state as arrays (no pickle). run: what the run is, so that another one's is refused."""

    path: Path
    run: str

    def write(self, network: Network, optimizer: Any, state: State) -> None:
        """Whole or not at all."""
        arrays: dict[str, Any] = {}
        for k, (key, parameter) in enumerate(network.parameters.items()):
            arrays[f"now {k}"], arrays[f"best {k}"] = parameter.detach().numpy(), state.best[key]
            for name, value in optimizer.state.get(parameter, {}).items():
                arrays[f"{name} {k}"] = value.numpy()
        text = {"run": self.run, "step": state.step, "before": state.before, "best_loss": state.best_loss}
        text |= {"best_step": state.best_step, "history": state.history, "seconds": state.seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, state=np.array(json.dumps(text)), **arrays)
            os.replace(temporary, self.path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def restore(self, network: Network, optimizer: Any, state: State) -> None:
        """Go on from the file, where there is one. Raises `BadInputError` where it belongs to another run."""
        if not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                self._restore(arrays, network, optimizer, state)
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise BadInputError(
                f"--checkpoint {self.path} cannot be read ({error}); remove it to start anew."
            ) from None

    def _restore(self, arrays: Any, network: Network, optimizer: Any, state: State) -> None:
        text = json.loads(str(arrays["state"]))
        if text["run"] != self.run:
            raise BadInputError(
                f"--checkpoint {self.path} is of another run (other files, seed or settings); remove it or name another."
            )
        for k, (key, parameter) in enumerate(network.parameters.items()):
            state.best[key] = arrays[f"best {k}"]
            network.load({key: arrays[f"now {k}"]})
            moments = {n: torch.from_numpy(arrays[f"{n} {k}"]) for n in _MOMENTS if f"{n} {k}" in arrays}
            if moments:
                optimizer.state[parameter] = moments
        state.step, state.before, state.best_loss = text["step"], text["before"], text["best_loss"]
        state.best_step, state.seconds = text["best_step"], text["seconds"]
        state.history = [(int(a), float(b), float(c)) for a, b, c in text["history"]]


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
