"""Texts as a model is fed them: the tokens of a `tokenizer.json`, padded as it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Array
from onnxprune.inputs.wanted import TEXTS, Wanted, cast

LONGEST = 128  # tokens, where the model's length is dynamic and nothing is said


def lines(files: Sequence[Path], field: str) -> list[str]:
    """The texts of .txt files (one a line; of several files, one each) and .jsonl files (a field of each line). Raises `BadInputError`."""
    chosen = [p for p in files if p.suffix.lower() in TEXTS]
    found: list[str] = []
    for path in chosen:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as problem:
            raise BadInputError(f"{path} cannot be read as UTF-8 text: {problem}.") from None
        if path.suffix.lower() == ".jsonl":
            found += [_field(line, field, f"{path}:{n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        elif len(chosen) == 1:
            found += [line for line in text.splitlines() if line.strip()]
        elif text.strip():
            found.append(text.strip())
    if not found:
        raise BadInputError(f"There is no text in {', '.join(str(p) for p in chosen[:3])}.")
    return found


def _field(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        raise BadInputError(f"{where} is no JSON.") from None
    value = row.get(field) if isinstance(row, dict) else row
    if not isinstance(value, str):
        has = f"; it has {', '.join(map(str, row))}" if isinstance(row, dict) else ""
        raise BadInputError(f"{where} has no text in {quoted(field)}{has}; name the field with --field.")
    return value


def tokens(texts: Sequence[str], wanted: Sequence[Wanted], tokenizer: Path, length: int | None) -> dict[str, Array]:
    """`[n, length]` for each of the inputs. length: where the model's is dynamic, at most so many tokens. Raises `BadInputError`."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BadInputError("Texts are cut by tokenizers; install it: pip install 'onnxprune[data]'.") from None
    try:
        made: Any = Tokenizer.from_file(str(tokenizer))
    except Exception as problem:  # the library raises no class of its own
        raise BadInputError(f"{tokenizer} is no tokenizer.json: {' '.join(str(problem).split())[:120]}.") from None
    fixed = next((w.dims[-1] for w in wanted if w.dims and w.dims[-1] not in (None, 1)), None)
    most = fixed or length or LONGEST
    padding = made.padding or {}
    made.no_padding()
    made.enable_truncation(max_length=most)
    encoded = made.encode_batch(list(texts))
    width = fixed or max(1, *(len(e.ids) for e in encoded))
    pad, left = int(padding.get("pad_id", _pad_of(made))), padding.get("direction", "right") == "left"
    by_name = {
        "input_ids": _table([e.ids for e in encoded], width, pad, left),
        "attention_mask": _table([e.attention_mask for e in encoded], width, 0, left),
        "token_type_ids": _table([e.type_ids for e in encoded], width, int(padding.get("pad_type_id", 0)), left),
    }
    mask = by_name["attention_mask"]
    by_name["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    found = {}
    for w in wanted:
        key = next((k for k in by_name if w.name == k or w.name.endswith(k)), None)
        if key is None and len(wanted) == 1:
            key = "input_ids"
        if key is None:
            raise BadInputError(
                f"What the input {w} takes is not known; known are {', '.join(by_name)}. Give it with --input {w.name}=FILE.npy."
            )
        found[w.name] = cast(by_name[key], w)
    return found


def _pad_of(tokenizer: Any) -> int:
    for token in ("[PAD]", "<pad>", "<|endoftext|>", "</s>"):
        number = tokenizer.token_to_id(token)
        if number is not None:
            return int(number)
    return 0


def _table(rows: Sequence[Sequence[int]], width: int, fill: int, left: bool) -> Array:
    made = np.full((len(rows), width), fill, np.int64)
    for k, row in enumerate(rows):
        if row:
            made[k, slice(-len(row), None) if left else slice(0, len(row))] = row
    return made
