"""The search for a peer's ratio, against results known beforehand; the peers themselves are not needed."""

from __future__ import annotations

import math

from tests.benchmarks.peers import METHODS, Peer, closest


def test_closest_takes_the_largest_width_that_fits() -> None:
    def attempt(ratio: float) -> tuple[float, int]:
        width = 64 - math.ceil(64 * ratio)
        return (width / 64) ** 2, width

    assert closest(attempt, 0.5) == ((45 / 64) ** 2, 45)  # 46 keep 0.517
    assert closest(attempt, (48 / 64) ** 2)[1] == 48  # equal to the target is not above it


def test_closest_without_a_fit_takes_what_keeps_least() -> None:
    assert closest(lambda ratio: (max(0.4, 1 - ratio), ratio), 0.3)[0] == 0.4


def test_rows_are_peers_or_options() -> None:
    ours = {name for name, method in METHODS.items() if not isinstance(method, Peer)}
    assert ours and all(name.startswith("onnxprune") for name in ours)
