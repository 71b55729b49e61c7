"""What the README shows is what happens: its code runs, its quotations are in the files, it names every option.

Blocks of one kind share a folder with `models/` and `tests/zoo/` and run in the order of the page, so that a later one may read what
an earlier one has written. A block after `<!-- not run: REASON -->` is left out; after `<!-- from PATH -->` it quotes a file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from onnxprune.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "console")
NOT_RUN = 2  # blocks that the README marks so


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    note: str

    @property
    def is_run(self) -> bool:
        return not self.note.startswith(("not run: ", "from "))


BLOCKS = [Block(m["kind"], m["text"], m["note"] or "") for m in BLOCK.finditer(README)]


def commands(block: Block) -> list[list[str]]:
    """The calls of onnxprune in a block of shell commands."""
    lines = [line for line in block.text.splitlines() if line.startswith(("onnxprune ", "python -m onnxprune"))]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        found.append(["-m", "onnxprune", *words[1:]] if words[0] == "onnxprune" else words[1:])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout's, with the files that the README names."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "models", path / "models", ignore=shutil.ignore_patterns("real", "__pycache__"))
    shutil.copytree(ROOT / "tests" / "zoo", path / "tests" / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    return path


def run(arguments: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_command_and_every_python_block_runs(folder: Path) -> None:
    """In order; both kinds are there."""
    ran = {"command": 0, "python": 0}
    for block in BLOCKS:
        if block.is_run and block.kind in SHELL:
            for command in commands(block):
                run(command, folder)
                ran["command"] += 1
        if block.is_run and block.kind == "python":
            run(["-c", block.text], folder)
            ran["python"] += 1
    assert ran["command"] >= 7 and ran["python"] >= 3, ran
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes(), "a replay differs"


def test_blocks_that_are_not_run_are_counted() -> None:
    assert sum(block.note.startswith("not run: ") for block in BLOCKS) == NOT_RUN


def test_fences_are_understood() -> None:
    """No block escapes the pattern above, and every kind is one that is run, quoted or plain output."""
    assert README.count("```") == 2 * len(BLOCKS)
    assert {block.kind for block in BLOCKS} <= {"python", "text", *SHELL}


def test_quotations_are_in_the_files() -> None:
    quotations = [block for block in BLOCKS if block.note.startswith("from ")]
    assert len(quotations) >= 3
    for block in quotations:
        path = block.note.removeprefix("from ")
        assert block.text in (ROOT / path).read_text(encoding="utf-8"), f"{path} has changed"


def test_every_subcommand_and_option_is_named() -> None:
    assert isinstance(main, click.Group)
    for name, command in main.commands.items():
        assert f"onnxprune {name}" in README
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert re.search(rf"(?<![-\w]){re.escape(option)}(?![-\w])", README), f"{name} {option}"


def test_the_output_shown_is_the_output(folder: Path) -> None:
    """Up to times: the first command of the section prints what is said to follow from it."""
    section = README.split("## The command line", 1)[1].split("## ", 1)[0]
    blocks = [Block(m["kind"], m["text"], "") for m in BLOCK.finditer(section)]
    command = next(commands(block) for block in blocks if block.kind in SHELL)[0]
    shown = next(block.text for block in blocks if block.kind == "text")
    assert without_times(run(command, folder)) == without_times(shown)


def without_times(text: str) -> list[str]:
    """Lines with single spaces, without milliseconds and the last digits of errors.

    What is cut where follows from measured damage, whose last digits differ between processors: numbers of those lines are left out.
    """
    lines = [re.sub(r"\d\.\de-\d+", "e", " ".join(line.split())) for line in text.strip().splitlines()]
    measured = ("removed", "repaired", "MACs", "parameters", "bytes")
    lines = [re.sub(r"[\d.,]+", "#", line) if line.startswith(measured) else line for line in lines]
    return [line for line in lines if not line.startswith("ms per run")]


def test_pins_shown_are_the_pins() -> None:
    section = README.split("## What is pruned", 1)[1].split("## ", 1)[0]
    shown = next(m["text"] for m in BLOCK.finditer(section) if m["kind"] == "text")
    pinned = [
        line
        for line in run(["-m", "onnxprune", "inspect", "models/digits.onnx"], ROOT).splitlines()
        if "pinned" in line
    ]
    assert all(line in shown.splitlines() for line in pinned)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    second = README.split("The second installs", 1)[1]
    install, command = next(m["text"] for m in BLOCK.finditer(second)).strip().splitlines()
    assert 'pip install -q -e ".[dev]"' in install
    assert 'pip install --quiet -e ".[dev]"' in script
    assert command == "python tests/run.py"
    assert command in [line.split(" <")[0] for line in script.splitlines()]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_tutorial_shows_what_its_code_prints(tmp_path: Path) -> None:
    section = README.split("## Tutorial", 1)[1].split("\n## ", 1)[0]
    printed, shown = "", 0
    for m in BLOCK.finditer(section):
        block = Block(m["kind"], m["text"], m["note"] or "")
        if block.kind == "text":
            assert block.text == printed
            shown += 1
        elif block.kind in SHELL:
            printed = "".join(run(command, tmp_path) for command in commands(block))
        else:
            printed = run(["-c", block.text], tmp_path)
    assert shown >= 4
