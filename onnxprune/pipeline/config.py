"""What a config may say: models, steps, gates and outputs, as pydantic models; options of steps come from the commands' own lists.

A further option of a command is a further key of its step, with the same meaning, and is in the JSON Schema at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from onnxprune.choose.budget import TARGETS, Budget
from onnxprune.choose.explore_options import BYTES
from onnxprune.choose.field import Field as Told
from onnxprune.choose.field import default_of, options, several
from onnxprune.choose.finetune_options import FinetuneOptions
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import SparsifyOptions
from onnxprune.errors import BadInputError, OnnxPruneError
from onnxprune.jobs import check_place
from onnxprune.pipeline.reading import Document
from onnxprune.pipeline.reading import Place as Path_

T = TypeVar("T", bound=BaseModel)
Kind = Literal["prune", "sparsify", "tune", "quantize"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TYPES: dict[str, Any] = {
    "str": str,
    "str | None": str | None,
    "int": int,
    "int | None": int | None,
    "float": float,
    "float | None": float | None,
    "bool": bool,
    "bool | None": bool | None,
    "tuple[str, ...]": str | list[str],
    "tuple[str | Path, ...]": str | list[str],
    "dict[str, tuple[int, ...]]": dict[str, list[int]],
    "dict[str, str]": dict[str, str],
    "str | Path | None": str | None,
    "str | Importance | None": str | None,
    "str | Runner | None": str | None,
}
"""What a config holds for an option, by its annotation."""

OWN = ("check", "benchmark")  # the run decides these itself
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>B|kB|KB|MB|GB|KiB|MiB|GiB|%)")


class Strict(BaseModel):
    """Keys that are not known are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """Only what the file says."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


def _of_options(
    name: str, doc: str, lists: Sequence[tuple[type, str | None]], more: Mapping[str, Any] = MappingProxyType({})
) -> type[Strict]:
    """A model of lists of options. lists: with the command whose options are meant. more: further keys."""
    made: dict[str, Any] = dict(more)
    for of, command in lists:
        for field, told in options(of, command):
            if field.name not in OWN and field.name not in made:
                made[field.name] = (_type(str(field.type), told), _described(field, told))
    return create_model(name, __base__=Strict, __doc__=doc, **made)


def _type(annotation: str, told: Told) -> Any:
    choices = (told.cli or {}).get("choices")
    kind = Literal[tuple(choices)] if choices else TYPES[annotation]
    return kind | None if choices and "None" in annotation else kind


def _described(field: Any, told: Told) -> Any:
    default = default_of(field)
    default = list(default) if isinstance(default, tuple) else default
    text = told.help + (f" Default: {told.by_default}." if told.by_default else "")
    return Field(default=default, description=text)


def _target(name: str, text: str) -> Any:
    kind = float | str | None if name == "latency" else float | None
    return kind, Field(default=None, description=text)


Timing = _of_options("Timing", "Where models are timed.", [(Place, "prune")])
Prune = _of_options(
    "Prune",
    "Remove channels, heads and neurons, to one target.",
    [(Options, "prune"), (Place, "prune"), (JobOptions, "prune")],
    {name: _target(name, text) for name, text in TARGETS.items()},
)
Sparsify = _of_options(
    "Sparsify", "Set weights to zero.", [(SparsifyOptions, None), (Options, "sparsify"), (Place, "sparsify")]
)
Tune = _of_options(
    "Tune",
    "Train the weights towards the original's outputs, without labels by default; needs the extra 'finetune'.",
    [(FinetuneOptions, None)],
    {"data": (str | None, Field(default=None, description="Inputs to train on. Default: those of the model."))},
)


class Quantize(Strict):
    """ONNX Runtime's static 8-bit quantization."""

    data: str | None = Field(default=None, description="Inputs to calibrate on. Default: those of the model.")
    samples: int | None = Field(default=None, ge=1, description="Use at most so many samples.")


class Step(Strict):
    """One step: exactly one of its keys."""

    prune: Prune | None = Field(default=None, description="As `onnxprune prune`.")  # type: ignore[valid-type]
    sparsify: Sparsify | None = Field(default=None, description="As `onnxprune sparsify`.")  # type: ignore[valid-type]
    tune: Tune | None = Field(default=None, description="As `onnxprune finetune`, towards the original.")  # type: ignore[valid-type]
    quantize: Quantize | None = Field(default=None, description="8-bit weights and activations.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`quantize` for `quantize: {}`."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {k: {} if v is None else v for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _one(self) -> Step:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a step has exactly one of the keys {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> Kind:
        return next(k for k in KINDS if getattr(self, k) is not None)

    @property
    def options(self) -> Strict:
        found: Strict = getattr(self, self.kind)
        return found


class Gates(Strict):
    """What must hold of the finished model, or nothing is published and the run exits with 4."""

    min_speedup: float | None = Field(
        default=None,
        gt=0,
        description="At least so many times as fast as the original: the median ratio of rounds in turn.",
    )
    max_latency: float | None = Field(default=None, gt=0, description="At most so many milliseconds a run (median).")
    max_size: int | str | None = Field(
        default=None,
        description="At most so large with external data: bytes, '10 MB', '9.5 MiB', or a share of the original such as '50%'.",
    )
    max_drop: float | None = Field(
        default=None, ge=0, description="At most so much lost by `metric` on the gates' data, in the metric's unit."
    )
    metric: str = Field(
        default="kl",
        description="What max_drop limits: kl, cosine or top1 (against the original), or MODULE:FUNCTION, which scores outputs and labels.",
    )
    min_agreement: float | None = Field(
        default=None, ge=0, le=1, description="At least this share of the answers (top classes) is the original's."
    )
    fidelity: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="At least this cosine similarity to the original's outputs, the mean over samples.",
    )
    data: str | None = Field(
        default=None, description="Inputs to judge on, best such that no step has seen. Default: those of the model."
    )

    @field_validator("max_size")
    @classmethod
    def _is_size(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            limit_of(value, 1)
        return value

    @property
    def any(self) -> bool:
        return bool(self.model_fields_set - {"metric", "data"})

    @property
    def is_timed(self) -> bool:
        return self.min_speedup is not None or self.max_latency is not None


class Outputs(Strict):
    """Files to write; each is published only if all gates of all models hold."""

    model: str = Field(description="The finished model.")
    plan: str | None = Field(default=None, description="The plan of the prune step (JSON).")
    report: str | list[str] | None = Field(
        default=None,
        description="Reports of the last prune or sparsify step; the suffix says the format, such as .md, .json or .html.",
    )

    @property
    def reports(self) -> list[str]:
        return [self.report] if isinstance(self.report, str) else list(self.report or ())


class Shared(Strict):
    """What every model has that does not say otherwise."""

    data: str | None = Field(default=None, description="Inputs without labels: a .npz file, or a folder of them.")
    timing: Timing | None = Field(default=None, description="Where models are timed.")  # type: ignore[valid-type]
    steps: list[Step] = Field(default=[], description="What is done, in this order. Default: one prune step.")
    gates: Gates = Field(default=Gates(), description="What must hold of the finished model.")


class Entry(Shared):
    """One model."""

    model: str = Field(description="The .onnx file.")
    name: str | None = Field(default=None, min_length=1, description="What messages call it. Default: the file's name.")
    outputs: Outputs = Field(description="Where the results go.")


class Config(Strict):
    """A run of onnxprune: `onnxprune run prune.yaml`."""

    version: Literal[1] = Field(default=1, description="Of this format.")
    defaults: Shared | None = Field(default=None, description="For all models.")
    models: list[Entry] = Field(min_length=1, description="The models, one after the other.")
    report: str | None = Field(
        default=None, description="Where the run is recorded as JSON. Default: beside the config, NAME.report.json."
    )
    junit: str | None = Field(default=None, description="Where gates are recorded as JUnit XML.")
    summary: str | None = Field(
        default=None, description="Where a summary in Markdown goes; on GitHub, the job's summary in any case."
    )


def limit_of(value: int | str, original: int) -> float:
    """Bytes. original: of which a share is taken. Raises `ValueError`."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value <= 0:
            raise ValueError("a size is above zero")
        return value
    found = SIZE.fullmatch(str(value).strip())
    if found is None:
        raise ValueError("a size is bytes, or a text such as '10 MB', '9.5 MiB' or '50%'")
    number = float(found["number"])
    return number / 100 * original if found["unit"] == "%" else number * BYTES[found["unit"].lower()]


def contents(entry: Entry) -> dict[str, Any]:
    """What the result of a model depends on, as JSON has it: not its name, and not where the work is done."""
    where = {"prune": {field.name for field, _ in options(JobOptions)}}
    return entry.model_dump(mode="json", exclude={"name": True, "steps": {"__all__": where}})


# ---------------------------------------------------------------- reading one


def config_of(document: Document) -> Config:
    """The config, with defaults filled into models, and all options checked. Raises `BadInputError` with file and line."""
    values = dict(document.values)
    defaults = values.get("defaults")
    if defaults is not None:
        _validated(Shared, defaults, document, ("defaults",))
    listed = values.get("models")
    if isinstance(defaults, dict) and isinstance(listed, list):
        values["models"] = [_over(defaults, m) if isinstance(m, dict) else m for m in listed]
    config = _validated(Config, values, document, ())
    for k, entry in enumerate(config.models):
        for n, step in enumerate(entry.steps):
            own = entry.steps and "steps" in (listed[k] if isinstance(listed, list) else {})
            place: Path_ = ("models", k, "steps", n, step.kind) if own else ("defaults", "steps", n, step.kind)
            try:
                check_step(step)
            except OnnxPruneError as problem:
                raise BadInputError(f"{document.where(place)}: {problem}") from None
        compares = [g for g in ("max_drop", "min_agreement", "fidelity") if getattr(entry.gates, g) is not None]
        if compares and entry.data is None and entry.gates.data is None:
            raise BadInputError(
                f"{document.where(('models', k, 'gates', compares[0]))}: the gate {compares[0]} compares answers: "
                "give inputs, with 'data:' in the model or in its gates."
            )
    return config


def check_step(step: Step) -> None:
    """Raise `BadInputError` for options that cannot be; whether files exist is seen later."""
    given = {
        k: v for k, v in step.options.given().items() if k not in ("data", "custom_ops", "plan", "labels", "checkpoint")
    }
    if step.kind == "prune":
        targets = [(name, given.pop(name)) for name in list(TARGETS) if given.get(name) is not None]
        given = {k: v for k, v in given.items() if k not in TARGETS}
        if len(targets) > 1:
            raise BadInputError(f"a prune step has one target, not {' and '.join(name for name, _ in targets)}.")
        for name, amount in targets:
            Budget(name, amount)
        where = several((JobOptions, Options, Place), given, "prune")[0]
        check_place(where.jobs, where.cluster)
    elif step.kind == "sparsify":
        several((SparsifyOptions, Options, Place), given, "sparsify")
    elif step.kind == "tune":
        several((FinetuneOptions,), given, "finetune")


def _over(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A model's own values, over the defaults; keys of gates and timing one by one."""
    made = {**defaults, **own}
    for key in ("gates", "timing"):
        if isinstance(defaults.get(key), dict) and isinstance(own.get(key), dict):
            made[key] = {**defaults[key], **own[key]}
    return made


def _validated(of: type[T], values: Any, document: Document, above: Path_) -> T:
    try:
        return of.model_validate(values)
    except ValidationError as problem:
        raise BadInputError(_sentence(of, problem, document, above)) from None


def _sentence(of: type[BaseModel], problem: ValidationError, document: Document, above: Path_) -> str:
    """The first of the problems, unknown keys before others: where, what, and the nearest known key."""
    found = problem.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    keys = [k for k in first["loc"] if isinstance(k, int) or not re.search(r"[\[\]()]|^(str|int|float|bool)$", k)]
    place = (*above, *keys)
    shown = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _known(of, keys[:-1])
        near = get_close_matches(str(keys[-1]), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
        holder = ".".join(map(str, place[:-1]))
        return f"{document.where(place)}: unknown key '{keys[-1]}'{f' in {holder}' if holder else ''}; {hint}"
    said = first["msg"].removeprefix("Value error, ")
    given = (
        ""
        if first["type"] in ("missing", "value_error") or isinstance(first["input"], dict | list)
        else f", not {first['input']!r}"
    )
    said = "this key is missing" if first["type"] == "missing" else said[0].lower() + said[1:]
    return f"{document.where(place)}: {shown or 'the file'}: {said}{given}."


def _known(of: type[BaseModel], keys: Sequence[str | int]) -> list[str]:
    """The keys of the model at a place."""
    at: Any = of
    for key in keys:
        if isinstance(key, str):
            at = _model_in(at.model_fields[key].annotation)
    return list(at.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return (
        next(found for part in get_args(annotation) if (found := _model_in(part)) is not None)
        if get_args(annotation)
        else None
    )


def named(config: Config) -> list[str]:
    """The models' names. Raises `BadInputError` where two have the same."""
    names = [m.name or Path(m.model).stem for m in config.models]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise BadInputError(f"Two models are called '{twice}'; give each a name of its own.")
    return names
