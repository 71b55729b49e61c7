"""One list of options: every field is checked before anything is loaded, and command line, plan and documentation follow from it."""

from __future__ import annotations

import json
import pydoc
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import BadInputError, Budget, Options, cli
from onnxprune.choose.explore_options import ExploreOptions
from onnxprune.choose.field import default_of, flag_of, options
from onnxprune.choose.finetune_options import FinetuneOptions, GradualOptions
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.options import replayed, settings_of
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import BenchOptions, CompareOptions, SparsifyOptions
from tests.oracle import net

NOWHERE = "there/is/no/model.onnx"  # what is said of an option comes before what is said of the model
LISTS = (
    Options,
    Place,
    JobOptions,
    FinetuneOptions,
    GradualOptions,
    SparsifyOptions,
    BenchOptions,
    CompareOptions,
    ExploreOptions,
)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"samples": "many"}, "--samples must be a whole number, 1 or more, not 'many'."),
    ({"samples": True}, "--samples must be a whole number, 1 or more, not True."),
    ({"samples": 2.0}, "--samples must be a whole number, 1 or more, not 2.0."),
    ({"samples": 0}, "--samples must be at least 1, not 0."),
    ({"seed": -1}, "--seed must be at least 0, not -1."),
    ({"round_to": 0}, "--round-to must be 1 (off) or more, not 0."),
    ({"importance": "bogus"}, "Unknown --importance 'bogus'; choose obs, l1, l2, linf or random"),
    ({"importance": 3}, "Unknown --importance of type int"),
    ({"recover": "magic"}, "Unknown --recover 'magic'; choose lsq, bias or none."),
    ({"depth": 2}, "Unknown --depth 2; choose off, auto or only."),
    ({"then_quantize": "int4"}, "Unknown --then-quantize 'int4'; choose int8."),
    ({"mix": "yes"}, "--mix/--no-mix must be True or False, not 'yes'."),
    ({"check": 1}, "--check must be True or False, not 1."),
    ({"include": 3}, "--include takes a pattern such as 'stem*'"),
    ({"exclude": ["a", 3]}, "--exclude takes a pattern"),
    ({"input_shapes": [1, 3]}, "--input-shape takes sizes by input"),
    ({"input_shapes": {"x": "1,3"}}, "--input-shape of 'x' must be sizes above zero"),
    ({"input_shapes": {"x": (1, -3)}}, "--input-shape of 'x' must be sizes above zero"),
    ({"data": "nowhere.npz"}, "--data nowhere.npz does not exist"),
    ({"data": 7}, "--data takes the path of a file, not 7."),
    ({"custom_ops": "none.so"}, "--custom-ops none.so does not exist"),
    ({"metric": "accuracy"}, "Unknown --metric 'accuracy'"),
    ({"metric": 1}, "--metric must be a name"),
    ({"recovery": "lsq"}, "Unknown option 'recovery'; the nearest is 'recover', of metric,"),
    ({"report": "x.htm"}, "--report x.htm must end in .html, .md or .json."),
]


def refusal(call: Any, *arguments: Any, **given: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        call(*arguments, **given)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and ". " not in said
    return said


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[json.dumps(g, default=str) for g, _ in WRONG])
def test_wrong_options_are_said_before_anything_is_loaded(given: dict[str, Any], message: str) -> None:
    assert message in refusal(onnxprune.prune, NOWHERE, Budget("macs", 0.5), **given)


def test_every_field_refuses_a_value_of_a_foreign_type() -> None:
    for of in LISTS:
        for field, told in options(of):
            assert refusal(told.check, flag_of(field), object()), field.name
            assert told.check(flag_of(field), default_of(field)) == default_of(field), "the default is allowed"


@pytest.mark.parametrize("given", ["macs=0.5", "--macs=0.5", "macs = 0.5"])
def test_a_budget_as_text_is_told_how_to_write_it(given: str) -> None:
    assert 'give Budget("macs", 0.5).' in refusal(onnxprune.prune, NOWHERE, given)


@pytest.mark.parametrize("amount", ["half", None, float("nan"), True, -0.1, 1.5, float("inf")])
def test_budgets_are_numbers(amount: Any) -> None:
    assert "--macs must be" in refusal(Budget, "macs", amount)


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (onnxprune.sparsify, {"sparsity": "half"}, "--sparsity must be a number"),
        (onnxprune.sparsify, {"sparsity": 0.5, "store": "zip"}, "Unknown --store 'zip'"),
        (onnxprune.sparsify, {"sparsity": 0.5, "importance": "l2"}, "Unknown option 'importance'"),
        (onnxprune.sparsify, {"sparsity": 0.5, "report": "x.htm"}, "must end in .html, .md or .json"),
        (onnxprune.inspect, {"samples": 5}, "Unknown option 'samples'"),
        (onnxprune.bench, {"runs": 0}, "--runs must be at least 1, not 0."),
        (onnxprune.bench, {"threads": "all"}, "--threads must be a whole number"),
        (onnxprune.finetune, {"data": "x.npz", "labels": "y", "rate": float("nan")}, "--rate must be above zero"),
        (onnxprune.finetune, {"data": "x.npz", "labels": "y", "step": 3}, "the nearest is 'steps'"),
    ],
)
def test_the_other_functions_check_theirs(call: Any, given: dict[str, Any], message: str) -> None:
    assert message in refusal(call, NOWHERE, **given)


def test_verify_and_pruning_during_training_check_theirs() -> None:
    assert "--seed must be" in refusal(onnxprune.verify, NOWHERE, NOWHERE, NOWHERE, seed="now")
    train, budget = onnxprune.prune_during_training, Budget("macs", 0.5)
    assert "--rounds must be at least 1" in refusal(train, NOWHERE, budget, data=__file__, rounds=0)
    assert "the nearest is 'batch'" in refusal(train, NOWHERE, budget, data=__file__, training={"batches": 3})
    assert "--data" in refusal(train, NOWHERE, budget, data="nowhere.npz")


def test_a_string_is_one_pattern() -> None:
    model = net("""g (float[N,6] x) => (float[N,3] y) <float[6,12] w, float[12,8] v, float[8,3] h> {
        a = MatMul(x, w)
        r = Relu(a)
        b = MatMul(r, v)
        s = Relu(b)
        y = MatMul(s, h)
    }""")
    one, several = (
        onnxprune.prune(model, Budget("ratio", 0.5), exclude=given, round_to=1, benchmark=False).plan
        for given in ("w*", ["w*"])
    )
    assert one.settings["exclude"] == ["w*"] and one == several


def test_the_command_line_has_every_field_of_the_list() -> None:
    commands = {
        "prune": (Options, Place, JobOptions, GradualOptions),
        "finetune": (FinetuneOptions,),
        "sparsify": (SparsifyOptions, Options, Place),
    }
    commands |= {
        "explore": (ExploreOptions, JobOptions, Options, Place),
        "run": (JobOptions,),
        "compare": (CompareOptions, Options, Place),
    }
    commands |= {"bench": (BenchOptions, Place, Options), "inspect": (Options,), "verify": (Options,)}
    for name, lists in commands.items():
        parameters = {p.name: p for p in cli.main.commands[name].params}
        for of in lists:
            for field, told in options(of, name):
                assert (field.name in parameters) == (told.cli is not None), (name, field.name)


def test_a_plan_keeps_what_the_list_says_and_gives_it_back() -> None:
    given = Options(
        recover="bias", samples=7, include=("a", "b"), input_shapes={"x": (1, 2)}, seed=3, depth="auto", mix=True
    )
    kept = json.loads(json.dumps(settings_of(given, Budget("macs", 0.5))))
    assert kept.pop("target") == {"macs": 0.5}
    assert set(kept) == {field.name for field, told in options(Options) if told.stored}

    class Made:
        settings = kept

    back: Any = replayed(Options(), Made())  # type: ignore[arg-type]
    for name in ("recover", "samples", "include", "input_shapes", "seed", "depth"):
        assert getattr(back, name) == getattr(given, name), name


def test_help_shows_every_option_with_default_and_meaning() -> None:
    lines = pydoc.plain(pydoc.render_doc(onnxprune)).splitlines()
    text = " ".join(" ".join(line.strip().removeprefix("|") for line in lines).split())
    for of in LISTS:
        for field, told in options(of):
            shown = told.by_default or repr(default_of(field))
            assert f"{field.name}: {field.type} = {shown} {told.help}" in text, field.name
    for name in ("prune", "sparsify", "finetune", "prune_during_training", "inspect", "verify", "bench"):
        assert f"{name}(" in text


def test_the_package_has_all_that_it_names() -> None:
    places = {name for names in onnxprune.PLACES.values() for name in names}
    assert places | {"__version__"} == set(onnxprune.__all__)
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None and name in dir(onnxprune)
    with pytest.raises(AttributeError, match="nonsense"):
        onnxprune.nonsense  # noqa: B018


def loaded(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has loaded after the code."""
    heavy = ("numpy", "onnx", "onnxruntime", "scipy", "torch", "rich")
    code += f"\nimport sys, json; print('\\n' + json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["sparsify", "--help"], ["finetune", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded("import onnxprune") == []
    assert loaded(f"from onnxprune.cli import main\nmain({arguments}, standalone_mode=False)") == []


def test_fine_tuning_needs_torch_only_where_it_is_called() -> None:
    assert "torch" not in loaded("import onnxprune\nonnxprune.finetune, onnxprune.FinetuneResult, onnxprune.prune")
    code = (
        "import sys; sys.modules['torch'] = None; import onnxprune\n"
        f"try: onnxprune.finetune('m.onnx', 't.onnx', data={__file__!r})\n"
        "except onnxprune.BadInputError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'onnxprune[finetune]'" in done.stdout


def test_the_module_of_the_benchmarks_does_not_hide_the_function() -> None:
    code = "import onnxprune.bench, onnxprune\nfrom onnxprune import bench\nprint(callable(bench), callable(onnxprune.bench))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    done = subprocess.run([sys.executable, "-m", "onnxprune.bench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr


def test_numbers_of_numpy_are_numbers() -> None:
    assert Budget("macs", np.float32(0.5)).amount == 0.5
    assert type(Options.__dataclass_fields__["samples"].metadata["onnxprune"].check("--samples", np.int64(4))) is int
    assert len({f.name for f in fields(Options)}) == len(fields(Options))
