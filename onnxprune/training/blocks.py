"""Block by block, before everything at once: the stretch between two tensors that both networks have learns, of what the student has at
its start, to give what the teacher has at its end. The repair fits one layer of a block, this all of them, and non-linearities count.

    moved = reconstruct(network, objective, training, held, …)   # how many blocks are better for it

(Block reconstruction: Li et al., "BRECQ", ICLR 2021, section 3, there of rounding; mean square error, no Fisher weights.) A block takes
as much work as its share of the network, so that a pass over all blocks costs what as many steps of the whole network do. The
last block leads to the outputs, and learns them. A block keeps what it learned only where that is better on samples that are held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from onnxprune.clock import Step
from onnxprune.training.functions.base import Tensor
from onnxprune.training.loop import relative, set_rates, zeros
from onnxprune.training.network import Network, Plan
from onnxprune.training.objective import Feature, Objective, Target

ROOM = 1 << 30  # bytes of what both networks have at the ends of blocks, on all samples
BETAS = (0.9, 0.99)
START = 1e-2  # of the schedule: where its first step is taken


@dataclass(frozen=True)
class Pace:
    """steps: per block, of one batch each. rate: the largest step, in units of the root mean square of each weight. warmup: share of the
    steps in which it rises. minutes: for all blocks, the schedule fitted to it. seed: of the order of batches.
    """

    steps: int = 200
    rate: float = 0.02
    warmup: float = 0.05
    minutes: float | None = None
    seed: int = 0


def reconstruct(
    network: Network,
    objective: Objective,
    training: Sequence[Target],
    held: Sequence[Target],
    pace: Pace,
    progress: Callable[[str], None],
) -> int:
    """Train the network's parameters in place, in the order of the objective's features; how many blocks were better on `held` and stay so.

    training, held: batches, with what the teacher has at each feature and output.
    """
    blocks = _blocks(network, objective)
    state = [[dict(t.feeds) for t in part] for part in (training, held)]
    begin, moved = time.perf_counter(), 0
    for k, block in enumerate(blocks):
        end = None if pace.minutes is None else begin + 60 * pace.minutes * (k + 1) / len(blocks)
        moved += block.learn(state, (training, held), pace, end, [pace.seed, 6, k])
        later = {key for rest in blocks[k + 1 :] for step in rest.plan[0] for key in step.reads}
        for given in (*state[0], *state[1]) if later else ():
            with torch.no_grad():
                given |= network(given, block.keys, block.plan)
            for key in given.keys() - later:
                del given[key]
        progress(Step("blocks", (k + 1) / len(blocks), ""))
    return moved


def fitting(features: Sequence[Feature], targets: Sequence[Target]) -> int:
    """How many of the targets, the first ones, lie within `ROOM`, with the student's values beside the teacher's."""
    room = float(ROOM)
    for count, target in enumerate(targets):
        room -= 2 * sum(target.teacher[f.key].numel() * 4 for f in features)
        if room < 0:
            return count
    return len(targets)


def _blocks(network: Network, objective: Objective) -> list[_Block]:
    """What leads to each feature from those before, with the parameters that only these steps read so far; last, to the outputs."""
    done: set[str] = set()
    known: set[str] = set()
    found = []
    ends: list[tuple[tuple[str, ...], Objective]] = []
    ends += [((f.key,), replace(objective, distances=(), features=(f,))) for f in objective.features]
    ends.append((tuple(d.name for d in objective.distances), replace(objective, features=())))
    for keys, aim in ends:
        plan = network.part(known, keys)
        read = {key for step in plan[0] for key in step.reads}
        own = [key for key in network.parameters if key in read and key not in done]
        if own:
            aim = replace(aim, supervised=None, feature_weight=1.0, label_weight=0.0)
            found.append(_Block(network, keys, aim, plan, own))
            known.update(keys)
            done.update(own)
    return found


@dataclass(frozen=True)
class _Block:
    """keys: what it gives. objective: of these alone. own: the parameters that it trains."""

    network: Network
    keys: tuple[str, ...]
    objective: Objective
    plan: Plan
    own: Sequence[str]

    def learn(
        self,
        state: Sequence[Sequence[Mapping[str, Any]]],
        targets: Sequence[Sequence[Target]],
        pace: Pace,
        end: float | None,
        seed: Sequence[int],
    ) -> bool:
        """Is it better afterwards on what is held out? Else it is as before."""
        network, rng = self.network, np.random.default_rng(list(seed))
        before, start = network.values_of(self.own), self._held(state[1], targets[1])
        parameters = [network.parameters[key] for key in self.own]
        optimizer = torch.optim.Adam(relative(parameters, pace.rate), betas=BETAS)
        masks = [(p, mask) for p, mask in zeros(network) if any(p is own for own in parameters)]
        begin, order = time.perf_counter(), list[int]()
        for step in range(pace.steps):
            now = time.perf_counter()
            done = max(step / pace.steps, 0.0 if end is None else (now - begin) / max(end - begin, 1e-9))
            if done >= 1:
                break
            order = order or rng.permutation(len(targets[0])).tolist()
            k = order.pop()
            set_rates(optimizer, done, pace.warmup, START)
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(state[0][k], targets[0][k])
            if not loss.requires_grad or not math.isfinite(float(loss.detach())):
                break
            (loss / targets[0][k].weight).backward()
            for parameter, mask in masks:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            optimizer.step()
        if self._held(state[1], targets[1]) < start:
            return True
        network.load(before)
        return False

    def _loss(self, given: Mapping[str, Any], target: Target) -> Tensor:
        return self.objective(target, self.network(given, self.keys, self.plan))

    def _held(self, state: Sequence[Mapping[str, Any]], targets: Sequence[Target]) -> float:
        with torch.no_grad():
            found = sum(float(self._loss(given, t)) for given, t in zip(state, targets, strict=True))
        return found if math.isfinite(found) else math.inf
