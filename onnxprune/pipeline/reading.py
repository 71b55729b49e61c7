"""A YAML file as plain values: environment variables filled in, overrides applied, every key with its line.

Only plain YAML is read (`yaml.SafeLoader`); nothing of a file is ever executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from onnxprune.errors import BadInputError, quoted
from onnxprune.model.files import instead

Place: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top to a value."""

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
LARGEST = 1 << 22  # bytes of a file
DEEPEST = 40  # levels


@dataclass
class Document:
    """path: of the file. values: what it says. lines: of keys and entries, the first being 1."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """The file, and the line of a value or of what holds it, as editors take it."""
        for n in range(len(place), 0, -1):
            if place[:n] in self.lines:
                return f"{self.path}:{self.lines[place[:n]]}"
        return str(self.path)


def read(path: Path, sets: Sequence[str], environment: Mapping[str, str]) -> Document:
    """sets: overrides such as `models.0.model=new.onnx`.

    Raises `BadInputError` for what is no mapping in plain YAML, and for a variable that is not set.
    """
    import yaml

    try:
        if path.stat().st_size > LARGEST:
            raise BadInputError(f"{path} is larger than 4 MB; that is no config.")
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_aliases(node)
        document = Document(path, {})
        if node is not None:
            _note(node, (), document)
        values = yaml.safe_load(text)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInputError(f"{path} is no file; {instead(path, 'write one with onnxprune init MODEL.')}") from None
    except UnicodeDecodeError:
        raise BadInputError(
            f"{path} is no text, so no config; give a YAML file, such as onnxprune init MODEL writes."
        ) from None
    except OSError as problem:
        raise BadInputError(f"{path} cannot be read: {problem}.") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise BadInputError(f"{path}{line}: this is no plain YAML ({problem.problem}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise BadInputError(f"{path} is no plain YAML ({' '.join(str(problem).split())[:120]}).") from None
    if not isinstance(values, dict):
        raise BadInputError(f"{path} must hold keys such as 'models:'; write one with onnxprune init MODEL.")
    document.values = _filled(values, (), document, environment)
    for each in sets:
        _set(document, each)
    return document


def _check_aliases(node: Any) -> None:
    """Raise `BadInputError` where aliases make a small file a huge one, or go round in circles."""
    count, stack = 0, [(node, 0)]
    while stack:
        one, depth = stack.pop()
        count += 1
        if count > 100_000 or depth > DEEPEST:
            raise BadInputError("The config is nested too deeply, or its aliases make it too large.")
        if one is not None and isinstance(one.value, list):
            for entry in one.value:
                stack += [(part, depth + 1) for part in (entry if isinstance(entry, tuple) else (entry,))]


def _note(node: Any, place: Place, document: Document) -> None:
    """Lines of everything below; raises where a key comes twice."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            here = (*place, name)
            if name in seen and name != "<<":
                raise BadInputError(f"{document.path}:{key.start_mark.line + 1}: {quoted(name)} comes twice.")
            seen.add(name)
            document.lines[here] = key.start_mark.line + 1
            _note(value, here, document)
    elif isinstance(node, yaml.SequenceNode):
        for k, value in enumerate(node.value):
            document.lines[*place, k] = value.start_mark.line + 1
            _note(value, (*place, k), document)


def _filled(value: Any, place: Place, document: Document, environment: Mapping[str, str]) -> Any:
    """`${NAME}` and `${NAME:-default}` in texts; `$$` is a dollar sign. A text that is one variable becomes the number that it holds."""
    if isinstance(value, dict):
        return {k: _filled(v, (*place, str(k)), document, environment) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, (*place, k), document, environment) for k, v in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def of(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        if name is None:
            return "$"
        if name not in environment and default is None:
            raise BadInputError(
                f"{document.where(place)}: the environment variable {name} is not set; set it, or write ${{{name}:-default}}."
            )
        return environment.get(name) or default or ""

    made = VARIABLE.sub(of, value)
    whole = VARIABLE.fullmatch(value)
    return scalar(made) if whole is not None and whole["name"] else made


def scalar(text: str) -> Any:
    """A number, a switch or nothing, where the text is one as YAML has it; else the text."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return found if found is None or isinstance(found, bool | int | float) else text


def _set(document: Document, text: str) -> None:
    """One override, `KEY.KEY.0.KEY=VALUE`; a model may be called by its name. Keys that are missing are made."""
    import yaml

    keys, equals, given = text.partition("=")
    if not equals or not all(keys.split(".")):
        raise BadInputError(
            f"--set {quoted(text)} is not of the form key.key=value, such as models.0.steps.0.prune.macs=0.4."
        )
    try:
        value = yaml.safe_load(given) if given else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInputError(
            f"--set {keys}: {quoted(given)} is no YAML value; put texts with special characters in quotes."
        ) from None
    at: Any = document.values
    path = keys.split(".")
    for k, key in enumerate(path):
        last = k == len(path) - 1
        if isinstance(at, list):
            at, key = at, _index(at, key, keys)
        elif not isinstance(at, dict):
            raise BadInputError(f"--set {keys}: there are no keys in {'.'.join(path[:k])}.")
        if last:
            at[key] = value
        elif isinstance(at, dict):
            if at.get(key) is None:
                at[key] = {}
            at = at[key]
        else:
            at = at[int(key)]


def _index(entries: list[Any], key: str, whole: str) -> Any:
    named = [k for k, e in enumerate(entries) if isinstance(e, dict) and str(e.get("name")) == key]
    if named:
        return named[0]
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    names = [str(e["name"]) for e in entries if isinstance(e, dict) and "name" in e]
    known = f", or by name: {', '.join(names)}" if names else ""
    raise BadInputError(f"--set {whole}: there is no entry '{key}' among {len(entries)}; they count from 0{known}.")
