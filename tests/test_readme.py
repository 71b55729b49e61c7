"""What the README and the pages of `docs/` show is what happens: code runs, quotations are in the files, links lead somewhere.

Every page runs in a folder of its own, with `models/` and `tests/zoo/`; its blocks run in the order of the page, so that a later one may
read what an earlier one has written. A block after `<!-- not run: REASON -->` is left out; after `<!-- from PATH -->` it quotes a file,
and after `<!-- as PATH -->` it is written to one.
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
from onnxprune.ops.base import Rule

ROOT = Path(__file__).resolve().parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
README = PAGES["README.md"]
BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SHELL = ("bash", "console")
NOT_RUN = {
    "docs/accuracy.md": 2,
    "docs/benchmarks.md": 1,
    "docs/data.md": 2,
    "docs/pipeline.md": 4,
    "docs/cluster.md": 1,
    "docs/prune.md": 2,
    "docs/speed.md": 1,
}  # blocks that a page marks so
ONE_PAGE = 110  # lines of the README, at most
HEAVY = (  # train, finish many models, or time them
    "docs/benchmarks.md",
    "docs/explore.md",
    "docs/fine-tuning.md",
    "docs/layers.md",
    "docs/pipeline.md",
    "docs/plans-and-proof.md",
    "docs/profile.md",
    "docs/sparsity.md",
    "docs/speed.md",
)
RUNNABLE = [pytest.param(page, marks=pytest.mark.slow if page in HEAVY else ()) for page in sorted(PAGES)]


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    note: str

    @property
    def is_run(self) -> bool:
        return not self.note.startswith(("not run: ", "from ", "as "))


def blocks(text: str) -> list[Block]:
    return [Block(m["kind"], m["text"], m["note"] or "") for m in BLOCK.finditer(text)]


def section(page: str, title: str) -> str:
    """What follows a heading of the second level, up to the next one."""
    return PAGES[page].split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def commands(block: Block) -> list[list[str]]:
    """The calls of onnxprune in a block of shell commands."""
    lines = [line for line in block.text.splitlines() if line.startswith(("onnxprune ", "python -m onnxprune"))]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        found.append(["-m", "onnxprune", *words[1:]] if words[0] == "onnxprune" else words[1:])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a checkout's, with the files that the pages name."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("real", "__pycache__"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "zoo").symlink_to(ROOT / "tests" / "zoo")
    return tmp_path


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


@pytest.mark.parametrize("page", RUNNABLE)
def test_every_command_and_every_python_block_runs(page: str, folder: Path) -> None:
    """In order."""
    for block in blocks(PAGES[page]):
        if block.note.startswith("as "):
            (folder / block.note.removeprefix("as ")).write_text(block.text, encoding="utf-8")
        if block.is_run and block.kind in SHELL:
            for command in commands(block):
                run(command, folder)
        if block.is_run and block.kind == "python":
            run(["-c", block.text], folder)
    if page == "docs/plans-and-proof.md":
        assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes(), "a replay differs"


def test_there_are_blocks_to_run() -> None:
    runs = [block for text in PAGES.values() for block in blocks(text) if block.is_run]
    assert sum(len(commands(block)) for block in runs if block.kind in SHELL) >= 20
    assert sum(block.kind == "python" for block in runs) >= 9


def test_blocks_that_are_not_run_are_counted() -> None:
    marked = {page: sum(block.note.startswith("not run: ") for block in blocks(text)) for page, text in PAGES.items()}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


@pytest.mark.parametrize("page", sorted(PAGES))
def test_fences_are_understood(page: str) -> None:
    """No block escapes the pattern above, and every kind is one that is run, quoted or plain output."""
    found = blocks(PAGES[page])
    assert PAGES[page].count("```") == 2 * len(found)
    assert {block.kind for block in found} <= {"python", "text", "yaml", "groovy", *SHELL}


def test_quotations_are_in_the_files() -> None:
    quotations = [block for text in PAGES.values() for block in blocks(text) if block.note.startswith("from ")]
    assert len(quotations) >= 6
    for block in quotations:
        path = block.note.removeprefix("from ")
        assert block.text in (ROOT / path).read_text(encoding="utf-8"), f"{path} has changed"


def test_every_subcommand_and_option_is_named() -> None:
    assert isinstance(main, click.Group)
    text = "\n".join(PAGES.values())
    for name, command in main.commands.items():
        assert f"onnxprune {name}" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert re.search(rf"(?<![-\w]){re.escape(option)}(?![-\w])", text), f"{name} {option}"


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub makes them: lower case, hyphens for spaces, without punctuation."""
    prose = BLOCK.sub("", text)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    prose = BLOCK.sub("", PAGES[page])
    for target in [m["target"] for m in LINK.finditer(prose)]:
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert file.resolve().is_relative_to(ROOT), f"{page}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target} has no such heading"


def test_every_page_can_be_found() -> None:
    """The list of pages names each of them once, and the README leads to the list."""
    listed = re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", PAGES["docs/README.md"], re.MULTILINE)
    assert sorted(listed) == sorted(Path(page).name for page in PAGES if page not in ("README.md", "docs/README.md"))
    assert "(docs/README.md)" in README


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= ONE_PAGE


def test_every_package_is_described() -> None:
    described = re.findall(r"^\| `(\w+)/`", section("docs/how-it-works.md", "The packages"), re.MULTILINE)
    packages = [path.parent.name for path in (ROOT / "onnxprune").glob("*/__init__.py")]
    assert sorted(described) == sorted(packages)


def test_every_field_of_a_rule_is_described() -> None:
    text = section("docs/contributing.md", "What a rule can give")
    fields = set(Rule.__dataclass_fields__) - {"ops", "kind", "note", "registered"}  # names, and what `register` sets
    assert {name for name in fields if f"`{name}`" not in text} == set()


def test_the_output_shown_is_the_output(folder: Path) -> None:
    """Up to times: the first command of the page prints what is said to follow from it."""
    found = blocks(PAGES["docs/prune.md"])
    command = next(commands(block) for block in found if block.kind in SHELL)[0]
    shown = next(block.text for block in found if block.kind == "text")
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
    part = section("docs/prune.md", "What is pruned, and what is not")
    shown = next(block.text for block in blocks(part) if block.kind == "text")
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
    printed, shown = "", 0
    for block in blocks(PAGES["docs/tutorial.md"]):
        if block.kind == "text":
            assert block.text == printed
            shown += 1
        elif block.kind in SHELL:
            printed = "".join(run(command, tmp_path) for command in commands(block))
        else:
            printed = run(["-c", block.text], tmp_path)
    assert shown >= 4
