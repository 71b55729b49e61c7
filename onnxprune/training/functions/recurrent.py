"""LSTM, GRU and RNN, step by step, with the operators' default activations; anything else runs without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxprune.training.functions.base import Call, Function, Table, Tensor, Unsupported

Step = Callable[[Call, int, Tensor, tuple[Tensor, ...], Tensor, Tensor], tuple[Tensor, ...]]
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _lstm(
    c: Call, d: int, gates: Tensor, state: tuple[Tensor, ...], recurrence: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    h, cell = state
    i, o, f, g = (gates + h @ recurrence.T + bias).chunk(4, dim=-1)
    if c.get(7) is not None:
        peep = c[7][d].chunk(3)
        i, f = i + peep[0] * cell, f + peep[2] * cell
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    if c.get(7) is not None:
        o = o + peep[1] * cell
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru(
    c: Call, d: int, gates: Tensor, state: tuple[Tensor, ...], recurrence: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    (h,) = state
    n = h.shape[-1]
    z, r = (gates[..., : 2 * n] + h @ recurrence[: 2 * n].T + bias[: 2 * n]).sigmoid().chunk(2, dim=-1)
    last, shift = recurrence[2 * n :].T, bias[2 * n :]
    inner = r * (h @ last + shift) if c.attr("linear_before_reset", 0) else (r * h) @ last + shift
    return ((1 - z) * torch.tanh(gates[..., 2 * n :] + inner) + z * h,)


def _rnn(
    c: Call, d: int, gates: Tensor, state: tuple[Tensor, ...], recurrence: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    return (torch.tanh(gates + state[0] @ recurrence.T + bias),)


def recurrent(name: str, step: Step) -> Function:
    """x: [T, N, I]; W: [D, gates, I]; R: [D, gates, H]; bias: [D, 2 gates] -> y: [T, D, N, H] and the last states [D, N, H]."""

    def run(c: Call) -> Any:
        direction = c.attr("direction", "forward")
        count = 2 if direction == "bidirectional" else 1
        plain = c.attr("activations") in (None, [], DEFAULTS[name] * count)
        if not plain or c.get(4) is not None or c.attr("clip") or c.attr("layout", 0) or c.attr("input_forget", 0):
            raise Unsupported
        parts = [_direction(c, step, name, d, direction == "reverse" or d == 1) for d in range(count)]
        y = torch.stack([p[0] for p in parts], dim=1)
        return (y, *(torch.stack(last) for last in zip(*(p[1] for p in parts), strict=True)))[: max(c.outputs, 1)]

    return Function(run, trains=(1, 2, 3, 7), decays=(1, 2))


def _direction(c: Call, step: Step, name: str, d: int, is_reverse: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, weight, recurrence = c[0], c[1][d], c[2][d]
    width = weight.shape[0]
    both = c[3][d] if c.get(3) is not None else x.new_zeros(2 * width)
    start = [c[i][d] if c.get(i) is not None else x.new_zeros(x.shape[1], recurrence.shape[1]) for i in (5, 6)]
    state = tuple(start if name == "LSTM" else start[:1])
    gates = x @ weight.T + both[:width]
    seen = []
    for t in reversed(range(x.shape[0])) if is_reverse else range(x.shape[0]):
        state = step(c, d, gates[t], state, recurrence, both[width:])
        seen.append(state[0])
    return torch.stack(seen[::-1] if is_reverse else seen), state


FUNCTIONS: Table = {
    "LSTM": recurrent("LSTM", _lstm),
    "GRU": recurrent("GRU", _gru),
    "RNN": recurrent("RNN", _rnn),
}
