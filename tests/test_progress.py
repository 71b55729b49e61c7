"""What is said while a command runs, with a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.cli.progress import PERIODS, Display
from onnxprune.clock import Clock, Step, prefixed


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def told(is_terminal: bool) -> tuple[list[str], Display, Time]:
    lines: list[str] = []
    time = Time()
    return lines, Display(lines.append, PERIODS[is_terminal], time, changes=is_terminal), time


def run(display: Display, time: Time, seconds: int) -> None:
    for _ in range(seconds):
        time.seconds += 1
        display.tick()


def test_a_log_gets_a_line_a_minute() -> None:
    lines, display, time = told(False)
    clock = Clock(display)
    clock("analyse")
    run(display, time, 59)
    assert lines == []
    clock("calibrate")
    run(display, time, 1)
    assert lines == ["calibrate"]
    clock.share(0.25)
    run(display, time, 119)
    assert lines == ["calibrate", "calibrate 25%, for 61 s, about 3 min left"]
    run(display, time, 1)
    assert lines[2:] == ["calibrate 25%, for 2 min, about 6 min left"]


def test_a_terminal_shows_stage_share_and_estimate_after_ten_seconds() -> None:
    lines, display, time = told(True)
    clock = Clock(display)
    clock("verify")
    clock.share(0.5)
    assert lines == ["verify", "verify 50%"]
    run(display, time, 9)
    assert set(lines[2:]) == {"verify 50%"}
    run(display, time, 1)
    assert lines[-1] == "verify 50%, for 10 s, about 10 s left"


def test_a_stage_of_unknown_length_says_how_long_it_runs() -> None:
    lines, display, time = told(False)
    display("train")
    run(display, time, 60)
    assert lines == ["train, for 60 s"]


def test_a_step_is_a_text_with_its_parts() -> None:
    step = prefixed("round 1 of 3: ", Step("train", 0.5, ", loss 0.1"))
    assert step == "round 1 of 3: train 50%, loss 0.1"
    assert (step.stage, step.share) == ("round 1 of 3: train", 0.5)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_every_command_tells(command: str, tmp_path: Path) -> None:
    import onnxprune

    model = Path(__file__).parents[1] / "models/digits.onnx"
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    onnxprune.prune(model, onnxprune.Budget("ratio", 0.5), recover="none", output=small, plan=plan, benchmark=False)
    steps: list[str] = []
    if command == "inspect":
        onnxprune.inspect(model, progress=steps.append)
        assert list(dict.fromkeys(s.stage for s in steps if isinstance(s, Step))) == ["load", "analyse", "list"]
    else:
        onnxprune.verify(model, small, plan, progress=steps.append)
        stages = list(dict.fromkeys(s.stage for s in steps if isinstance(s, Step)))
        assert stages == ["load", "analyse", "rewrite", "verify"]
    assert any(isinstance(s, Step) and s.share for s in steps)
