"""Typed values as JSON: frozen dataclasses to plain data and back, and the JSON Schema that both follow.

    @dataclass(frozen=True)
    class Point:
        \"\"\"A place.

        x: millimetres from the left.
        label: for people; left out where there is none.
        \"\"\"

        x: float
        label: str | None = None

    plain(Point(1.5))              {"x": 1.5}
    typed(Point, {"x": 1.5})       Point(1.5), or BadInputError where the data is something else
    schema(Point)                  a JSON Schema, draft 2020-12, with the field's lines of the docstring as descriptions

A field whose default is None or () is left out of the JSON where it has it. Understood are str, int, float, bool, None, unions, literals,
`dict[str, T]`, `tuple[T, ...]`, named tuples (as arrays), dataclasses (as objects without further fields) and Any.
A dict field with the metadata OTHERS keeps what the data has beside the known fields; schemas do not list it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import BadInputError

T = TypeVar("T")
OTHERS = {"others": True}  # metadata of a field
LARGE = 1 << 62  # larger integers are nothing that a field means
JSON_NAMES = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _split(kind: Any) -> tuple[list[Field[Any]], str | None]:
    """The fields with a meaning, and the name of the one that keeps others."""
    own = [f for f in fields(kind) if not f.metadata.get("others")]
    return own, next((f.name for f in fields(kind) if f.metadata.get("others")), None)


def plain(value: Any) -> Any:
    """What `json.dumps` takes; tuples are lists."""
    if is_dataclass(value) and not isinstance(value, type):
        own, rest = _split(type(value))
        pairs = ((f, getattr(value, f.name)) for f in own)
        made = {f.name: plain(x) for f, x in pairs if not _is_left_out(f, x)}
        return made | (getattr(value, rest) if rest else {})
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return list(value) if all(type(v) in JSON_NAMES for v in value) else [plain(v) for v in value]
    return value


def _is_left_out(of: Field[Any], value: Any) -> bool:
    return _is_optional(of) and bool(value == of.default)


def _is_optional(of: Field[Any]) -> bool:
    return of.default is None or of.default == ()


# ---------------------------------------------------------------- from plain data


def typed(kind: type[T], data: Any, what: str) -> T:
    """The value of this type that the data says. what: how messages call the data.

    Raises `BadInputError`, which names the field, where the data says something else.
    """
    found = _typed(kind, data, what, "")
    assert isinstance(found, kind)
    return found


def _typed(kind: Any, data: Any, what: str, path: str) -> Any:
    """path: of the field, such as `groups[0].id`."""
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _object(kind, data, what, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, data, what, path)
    if origin is Literal:
        if any(data == a and type(data) is type(a) for a in arguments):
            return data
    elif origin is dict and isinstance(data, dict):
        return {k: _typed(arguments[1], v, what, f"{path}.{k}") for k, v in data.items()}
    elif origin is tuple and isinstance(data, list):
        if arguments[0] is int and all(type(x) is int and abs(x) <= LARGE for x in data):  # plans have millions
            return tuple(data)
        return tuple(_typed(arguments[0], x, what, f"{path}[{k}]") for k, x in enumerate(data))
    elif _is_named(origin or kind) and isinstance(data, list) and len(data) == len(_parts(kind)):
        return (origin or kind)(*(_typed(t, x, what, path) for (_, t), x in zip(_parts(kind), data, strict=True)))
    elif type(data) in ((int, float) if kind is float else (kind,)) and not (kind is int and abs(data) > LARGE):
        return data
    raise _fault(what, path, f"is not {_words(kind)}")


def _fault(what: str, path: str, problem: str) -> BadInputError:
    return BadInputError(f"{what}: '{path}' {problem}." if path else f"{what} {problem}.")


def _one_of(kinds: tuple[Any, ...], data: Any, what: str, path: str) -> Any:
    """The first alternative that fits; where none does, the complaint is the last one's."""
    others = [k for k in kinds if k is not type(None)]
    if data is None and len(others) < len(kinds):
        return None
    for kind in others[:-1]:
        try:
            return _typed(kind, data, what, path)
        except BadInputError:
            continue
    return _typed(others[-1], data, what, path)


def _object(kind: Any, data: Any, what: str, path: str) -> Any:
    if not isinstance(data, dict):
        raise _fault(what, path, "is not an object")
    hints, (own, rest) = _hints(kind), _split(kind)
    known = {f.name for f in own}
    further = {k: v for k, v in data.items() if k not in known}
    if further and rest is None:
        raise _fault(what, path, f"has a field '{next(iter(further))[:80]}' that this version does not know")
    for f in own:
        if not _is_optional(f) and f.name not in data:
            raise _fault(what, path, f"lacks '{f.name}'")
    inside = f"{path}." if path else ""
    found = {n: _typed(hints[n], x, what, f"{inside}{n}") for n, x in data.items() if n in known}
    return kind(**found, **({rest: further} if rest else {}))


def _words(kind: Any) -> str:
    names = {str: "text", int: "an integer", bool: "true or false", float: "a number"}
    origin = get_origin(kind)
    if _is_named(origin or kind):
        return f"a list of {len(_parts(kind))}"
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return names.get(kind, "an object" if origin is dict else "a list")


def _is_named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _parts(kind: Any) -> list[tuple[str, Any]]:
    """Names and types of a named tuple's fields, with the parameter of a generic one filled in."""
    base, arguments = get_origin(kind) or kind, get_args(kind)
    hints = get_type_hints(base)
    return [(n, arguments[0] if isinstance(hints[n], TypeVar) else hints[n]) for n in base._fields]


# ---------------------------------------------------------------- schemas


def schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a dataclass. A number that is not finite is null in JSON, so numbers may be null."""
    found: dict[str, Any] = {}
    root = _definition(kind, found)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.__name__, **root, "$defs": found}


def _definition(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    hints, told = _hints(kind), field_docs(kind)
    own, _ = _split(kind)
    properties = {}
    for f in own:
        described = {"description": told[f.name]} if f.name in told else {}
        properties[f.name] = described | _schema(hints[f.name], found)
    return {
        "description": (kind.__doc__ or "").split("\n\n")[0].strip(),
        "type": "object",
        "properties": properties,
        "required": [f.name for f in own if not _is_optional(f)],
        "additionalProperties": False,
    }


def _schema(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    if is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in found:
            found[kind.__name__] = {}
            found[kind.__name__] = _definition(kind, found)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(a, found) for a in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], found)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], found)}
    if _is_named(origin or kind):
        parts = [{"title": n} | _schema(t, found) for n, t in _parts(kind)]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    return {"type": ["number", "null"]} if kind is float else {"type": JSON_NAMES[kind]}


def field_docs(kind: type[Any]) -> dict[str, str]:
    """What the docstring says of each field: lines that begin with `name:`, and those indented under them."""
    names = {f.name for f in fields(kind)}
    return {name: text for name, text in _entries(kind.__doc__ or "") if name in names}


def _entries(text: str) -> Iterator[tuple[str, str]]:
    lines = text.split("\n\n", 1)[-1].splitlines() if "\n\n" in text else []
    starts = [k for k, line in enumerate(lines) if re.match(r" {4}\w+: ", line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        name, _, first = lines[start].strip().partition(": ")
        rest = [line.strip() for line in lines[start + 1 : end] if line.startswith(" " * 8)]
        yield name, " ".join([first, *rest])
