"""Retrieval (all-MiniLM-L6-v2): does the short description of a package find the long one?

The texts are Debian's: each of its packages has a short description of one line and a long one. A
text's vector is the mean of the model's output over its tokens; a short description finds the long
one whose vector has the largest cosine with its own. Which packages are in which part depends on
their names alone, so that another release of Debian moves few. Packages whose descriptions begin
alike count as one.

| part | packages | for |
|---|---|---|
| `TEST` | 500 | the score |
| `CHOOSE` | 500 | the same measure, where a setting is chosen |
| `FIT` | the others, short and long descriptions by turns | calibration |
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from models.tasks.base import CALIBRATION, Array, Feed, Floats, ScoreError, Task, open_session, random_stream

TEST, CHOOSE, FIT = "test", "choose", "fit"
PACKAGES = 500  # in each of TEST and CHOOSE
LONGEST = 128  # tokens
BATCH = 25
BEGINNING = 40  # characters by which descriptions are told apart
VARIABLE = "ONNXPRUNE_DESCRIPTIONS"
FOLDER = Path(__file__).resolve().parent.parent / "real" / "descriptions"
FILE = "Translation-en"
VOCABULARY = "vocabulary"  # the key in the model's metadata: the tokens, one a line
ENTRY = re.compile(r"Package: (?P<name>\S+)\n(?:\S.*\n)*?Description-en: (?P<short>.*)\n(?P<long>(?: .*\n?)*)")
IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))


@dataclass(frozen=True)
class Package:
    """What a package says of itself."""

    name: str
    short: str
    long: str


@dataclass(frozen=True)
class Tokens:
    """WordPiece without regard to case and accents, as BERT was trained with."""

    numbers: dict[str, int]

    @classmethod
    def of(cls, session: Any, path: Path) -> Tokens:
        """Those of a model, from its metadata."""
        metadata = session.get_modelmeta().custom_metadata_map
        if VOCABULARY not in metadata:
            raise ScoreError(f"'{path}' has no metadata entry '{VOCABULARY}', which names its tokens.")
        return cls({token: k for k, token in enumerate(metadata[VOCABULARY].split("\n"))})

    def ids(self, text: str) -> list[int]:
        """The tokens of a text between the marks of its beginning and end, 128 at most."""
        found = [number for word in words(text) for number in self.pieces(word)]
        return [self.numbers["[CLS]"], *found[: LONGEST - 2], self.numbers["[SEP]"]]

    def pieces(self, word: str) -> list[int]:
        """The longest tokens that make up a word, from its beginning."""
        found, start = [], 0
        while start < len(word) <= 100:
            ends = (end for end in range(len(word), start, -1) if self.piece(word, start, end) in self.numbers)
            end = next(ends, None)
            if end is None:
                break
            found.append(self.numbers[self.piece(word, start, end)])
            start = end
        return found if start == len(word) else [self.numbers["[UNK]"]]

    @staticmethod
    def piece(word: str, start: int, end: int) -> str:
        """A part of a word as a token: all but the first are marked."""
        return f"##{word[start:end]}" if start else word[start:end]


def words(text: str) -> Iterator[str]:
    """Words, marks of punctuation and ideographs, in small letters without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").lower()
    clean = "".join(" " if c in "\t\n\r" else c for c in plain if c in "\t\n\r" or unicodedata.category(c)[0] != "C")
    for run in clean.split():
        start = 0
        for k, c in enumerate(run):
            if is_alone(c):
                if k > start:
                    yield run[start:k]
                yield c
                start = k + 1
        if start < len(run):
            yield run[start:]


def is_alone(c: str) -> bool:
    """Whether a character is a word: punctuation, the other signs of ASCII, ideographs."""
    sign = c.isascii() and not c.isalnum()
    return sign or unicodedata.category(c)[0] == "P" or any(low <= ord(c) <= high for low, high in IDEOGRAPHS)


def folder() -> Path:
    """Where the descriptions lie: what the environment says, or where `models/fetch.py` puts them."""
    given = os.environ.get(VARIABLE)
    path = Path(given) if given else FOLDER
    if not (path / FILE).is_file():
        raise ScoreError(
            f"No file '{FILE}' in '{path}'; fetch it (python models/fetch.py descriptions), "
            f"or set {VARIABLE} to a folder with it."
        )
    return path


def read_packages(text: str) -> list[Package]:
    """The packages of a Translation-en file, those whose descriptions begin as another's do left out.

    They come in the order of a digest of their names, so that the first 500 are a fair choice.
    """
    found = {}
    for entry in text.split("\n\n"):
        if match := ENTRY.match(entry + "\n"):
            lines = [line.strip() for line in match["long"].splitlines()]
            long = " ".join(line for line in lines if line not in ("", "."))
            if long:
                found.setdefault(match["name"], Package(match["name"], match["short"].strip(), long))
    seen: set[str] = set()
    kept = []
    for package in sorted(found.values(), key=lambda p: hashlib.sha256(p.name.encode()).digest()):
        beginnings = {f"{kind}{text[:BEGINNING].lower()}" for kind, text in (("s", package.short), ("l", package.long))}
        if not beginnings & seen:
            kept.append(package)
        seen |= beginnings
    return kept


@cache
def all_packages(path: Path) -> list[Package]:
    """The packages of a folder."""
    return read_packages((path / FILE).read_text(encoding="utf-8"))


def packages(part: str) -> list[Package]:
    """The packages of one part."""
    found = all_packages(folder())
    if len(found) <= 2 * PACKAGES:
        raise ScoreError(f"'{folder() / FILE}' describes {len(found)} packages; more than {2 * PACKAGES} are needed.")
    return {TEST: found[:PACKAGES], CHOOSE: found[PACKAGES : 2 * PACKAGES], FIT: found[2 * PACKAGES :]}[part]


def feed(rows: Sequence[list[int]]) -> Feed:
    """Texts as the model's inputs `[n, longest]`; the shorter ones are padded, which the mask says."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)], mask[k, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def vectors(session: Any, rows: Sequence[list[int]]) -> Floats:
    """A vector of length 1 for each text: the mean of the first output over the text's tokens."""
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    found: dict[int, Array] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        inputs = feed([rows[k] for k in chosen])
        output = session.run(None, inputs)[0]
        mask = inputs["attention_mask"][:, :, None]
        sums = (output * mask).sum(axis=1)
        found |= dict(zip(chosen, sums / np.linalg.norm(sums, axis=1, keepdims=True), strict=True))
    return np.stack([found[k] for k in range(len(rows))])


def top1(model: Path, part: str) -> float:
    """The share of the part's packages whose short description finds its long one among those of all."""
    session = open_session(model)
    tokens = Tokens.of(session, model)
    chosen = packages(part)
    short, long = (
        vectors(session, [tokens.ids(t) for t in texts])
        for texts in zip(*((p.short, p.long) for p in chosen), strict=True)
    )
    return float(((short @ long.T).argmax(axis=1) == np.arange(len(chosen))).mean())


def evaluate(model: Path, reference: Path) -> float:
    """The score: 500 packages that are never calibrated on."""
    return top1(model, TEST)


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` texts of other packages, short and long descriptions by turns, each as long as it is."""
    tokens = Tokens.of(open_session(model), model)
    pool = packages(FIT)
    rows = random_stream("retrieval", CALIBRATION, seed).choice(len(pool), n, replace=False)
    return [feed([tokens.ids(pool[k].long if i % 2 else pool[k].short)]) for i, k in enumerate(rows)]


TASK = Task("retrieval top-1", calibrate, evaluate)
