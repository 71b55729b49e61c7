"""Where in a model to look for what can be removed, and with which inputs to observe it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Scope:
    """What the analysis of a model needs of the options.

    include: globs of node or tensor names; where there are any, only what they name may be pruned.
    exclude: globs of what is left alone.
    free: globs of inputs and outputs whose axes may shrink, and pairs of them (`analyse/freed.py`).
    include_inexact: also prune axes over which LayerNorm and its kin take a mean: close to the masked original, not equal.
    input_shapes: sizes of inputs with dynamic dimensions, by name, where the sizes that are found by trying do not do.
    data: a `.npz` file, or a folder of them, whose first samples the model is observed with; None for made-up inputs.
    seed: of made-up inputs.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    include_inexact: bool = False
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    data: str | Path | None = None
    seed: int = 0
