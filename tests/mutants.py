"""Mutants of the riskiest lines, one at a time, each of which some test must kill: python -m tests.mutants [NAME ...]

A copy of the package is changed in one place, and the tests that are to see it run against that copy. The table says which test was the
first to fail. The exit status is 1 where a mutant survives, where the text to change is not found exactly once, or where the same
tests fail without any change.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUARDS = "tests/test_mutation_guards.py"
PACE = "tests/test_pace.py"
PLAN = "tests/test_plan.py"
RESOLUTION = "tests/test_resolution.py"
TUNE = "tests/test_tune.py"


@dataclass(frozen=True)
class Mutant:
    """What breaks, in which file of the package, the text that is there, what stands there instead, and the tests that see it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def guard(*names: str) -> tuple[str, ...]:
    return tuple(f"{GUARDS}::test_{name}" for name in names)


MUTANTS = (
    Mutant(
        "--size is parameters",
        "choose/costs.py",
        '"size": model.size}',
        '"size": model.params}',
        guard("size_counts_what_only_bytes_have"),
    ),
    Mutant(
        "result not checked by ONNX",
        "api/carry.py",
        "    check_well_formed(loaded",
        "    (lambda *_: None)(loaded",
        guard("what_the_checker_refuses_is_never_written"),
    ),
    Mutant(
        "checker's word not heard",
        "proof/prove.py",
        "if problem is not None and _refused(original) is None:",
        "if False:",
        guard("the_checker_judges_a_result_by_its_original"),
    ),
    Mutant(
        "interface not compared",
        "proof/prove.py",
        "    check_interface(model.proto, pruned.proto, changed)\n",
        "",
        guard("the_proof_is_of_the_same_interface"),
    ),
    Mutant(
        "proof at one size",
        "proof/prove.py",
        "for f in pair]\n",
        "for f in pair[:1]]\n",
        guard("the_proof_is_at_two_sizes_of_dynamic_axes"),
    ),
    Mutant(
        "proof's verdict not heard",
        "proof/compare.py",
        "    if not worst <= tolerance:",
        "    if False:",
        guard("a_weight_that_is_one_percent_off_is_found"),
    ),
    Mutant(
        "tolerance x 1000",
        "proof/compare.py",
        "\nTOLERANCE = 1e-4\n",
        "\nTOLERANCE = 1e-1\n",
        guard("a_weight_that_is_one_percent_off_is_found"),
    ),
    Mutant(
        "NaN not compared",
        "proof/compare.py",
        "    if (finite != np.isfinite(y)).any() or not np.array_equal(x[~finite], y[~finite], equal_nan=True):",
        "    finite &= np.isfinite(y)\n    if False:",
        guard("nan_where_there_was_a_number_is_found"),
    ),
    Mutant(
        "mask not applied",
        "proof/masked.py",
        "            if dtype is not None:\n                seen",
        "            if False:\n                seen",
        (f"{PLAN}::test_document",),
    ),
    Mutant(
        "digest not compared",
        "proof/refit.py",
        "if digest is not None and digest_of(values) != digest:",
        "if False:",
        ("tests/test_repair.py::test_a_changed_constant_that_was_not_fitted_is_found",),
    ),
    Mutant(
        "only fitted constants compared",
        "proof/refit.py",
        "wanted.proto.SerializeToString() != pruned.proto.SerializeToString()\n",
        "False\n",
        ("tests/test_repair.py::test_a_changed_constant_that_was_not_fitted_is_found",),
    ),
    Mutant(
        "no sizes to try",
        "runtime/inputs.py",
        "\nSIZES = (16, 32, 64, 48, 128, 96, 224, 320, 512, 576, 1024, 8, 4, 2, 1)",
        "\nSIZES = (16,)",
        guard("the_one_size_that_works_is_found"),
    ),
    Mutant(
        "no image sizes to try",
        "runtime/inputs.py",
        "\nIMAGE_SIZES = (64, 128, 96, 48, 224, 256, 320, 32, 512, 640, 16, 1)",
        "\nIMAGE_SIZES = (64,)",
        guard("the_one_size_that_works_is_found"),
    ),
    Mutant(
        "no sizes per axis",
        "runtime/inputs.py",
        "if 1 < len(others) <= 3 and not alike:",
        "if False:",
        guard("the_one_size_that_works_is_found"),
    ),
    Mutant(
        "repair kept in any case",
        "choose/channels.py",
        "        if after[0] < before[0] or (",
        "        if True or (",
        guard("a_repair_that_does_not_help_is_not_kept"),
    ),
    Mutant(
        "a repair judged by divergence alone",
        "choose/channels.py",
        "after[1] < before[1] / 2",
        "False",
        guard("a_repair_that_is_sure_of_itself_is_kept"),
    ),
    Mutant(
        "more cut than needed",
        "choose/spend.py",
        "        if work.is_met(trial):",
        "        if False:",
        guard("nothing_is_cut_that_a_peak_does_not_need"),
    ),
    Mutant(
        "made-up inputs believed",
        "choose/sensitivity.py",
        "+ weight * np.linspace",
        "+ 0 * np.linspace",
        guard("made_up_inputs_do_not_let_one_group_pay_for_all"),
    ),
    Mutant(
        "nothing held out",
        "analyse/sources.py",
        "[fold - 1 :: fold] = HELD",
        "[fold - 1 :: fold] = FITTED",
        guard("samples_to_judge_with_are_not_fitted_on"),
    ),
    Mutant(
        "wrong positions kept",
        "groups/analysis.py",
        "array = array.compress(alive, axis=axis)",
        "array = array.compress(alive[::-1], axis=axis)",
        (f"{PLAN}::test_plan_names_what_the_pruned_file_lacks",),
    ),
    Mutant(
        "rows without their children",
        "groups/grouping.py",
        "            gone[child[gone[parent]]] = True\n",
        "",
        ("tests/ops/test_conv.py",),
    ),
    Mutant(
        "group attribute stays",
        "ops/conv.py",
        'edit.set_attr("group", edit.new(0)[1] // edit.new(1)[1])',
        "pass",
        ("tests/ops/test_conv.py",),
    ),
    Mutant(
        "Reshape's target stays",
        "ops/movement.py",
        "    edit.patch_sizes(i, changed, old, new)",
        "    pass",
        ("tests/ops/test_movement.py",),
    ),
    Mutant(
        "sizes that follow the inputs are not scaled",
        "cut/node_edit.py",
        "        if not follows.any():\n            return",
        "        if True:\n            return",
        ("tests/cases/test_heads_behind_a_dynamic_batch.py",),
    ),
    Mutant(
        "only the first step of a loop is looked at",
        "calibrate/bodies.py",
        "    yield from zip(*values, strict=False) if layer.loop else [values]",
        "    yield from [*zip(*values, strict=False)][:1] if layer.loop else [values]",
        ("tests/cases/test_bodies_of_loops.py",),
    ),
    Mutant(
        "plan of another file",
        "cut/plan.py",
        "if plan.model_sha256 != analysis.model.sha256:",
        "if False:",
        guard("a_plan_is_of_one_file_and_says_what_it_removes"),
    ),
    Mutant(
        "members not compared",
        "cut/plan.py",
        "    if _compared(plan_groups(analysis, removed), old) != _compared(plan.groups, old):",
        "    if False:",
        guard("a_plan_is_of_one_file_and_says_what_it_removes"),
    ),
    Mutant(
        "texts written at once",
        "model/files.py",
        'tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")',
        "(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), str(path))",
        guard("texts_move_to_their_places_at_the_end"),
    ),
    Mutant(
        "outputs of another size at another resolution",
        "choose/resolutions.py",
        "    if not same.issuperset(wanted) or",
        "    if",
        (f"{RESOLUTION}::test_outputs_of_another_size_decline",),
    ),
    Mutant(
        "a pixel lost by rounding",
        "cut/resolution.py",
        "    while min(float(np.float32(before) * scale), before * float(scale)) < after:",
        "    while False:",
        (f"{RESOLUTION}::test_every_size_is_met_exactly",),
    ),
    Mutant(
        "damages that start at what the coarser picture lost",
        "choose/resolutions.py",
        "    own = own if decides else aimed",
        "    own = aimed",
        (f"{RESOLUTION}::test_damages_start_at_nothing",),
    ),
    Mutant(
        "a size in 32 bits only",
        "cut/resolution.py",
        "while min(float(np.float32(before) * scale), before * float(scale)) < after:",
        "while float(np.float32(before) * scale) < after:",
        (f"{RESOLUTION}::test_shape_inference_and_pytorch_see_the_size_that_onnx_runtime_sees",),
    ),
    Mutant(
        "noise that the teacher does not bear",
        "api/finetuning.py",
        "if far(self.wanted[:1], [said]) <= most:",
        "if True:",
        (f"{TUNE}::test_no_more_noise_than_the_teacher_bears",),
    ),
    Mutant(
        "no layer comes back",
        "choose/pace.py",
        "            if found.excess >= 1 - TOLERANCE and lost > min(m[0] for m in met):",
        "            if found.excess <= 1:",
        (f"{PACE}::test_layers_come_back_as_long_as_that_loses_less",),
    ),
    Mutant(
        "sizes of a node that runs alone are inputs",
        "training/network.py",
        "        fixed = {n for n, k in names.items()",
        "        fixed = set() and {n for n, k in names.items()",
        ("tests/test_finetune.py::test_a_node_that_runs_in_onnx_runtime_keeps_its_constant_sizes",),
    ),
    Mutant(
        "steps that ruin a start stay as large",
        "training/loop.py",
        "schedule = replace(schedule, rate=LESS * schedule.rate)",
        "pass",
        (f"{TUNE}::test_steps_that_ruin_a_good_start_are_undone_and_become_smaller",),
    ),
)


def misplaced(mutant: Mutant) -> str | None:
    """Why a mutant cannot be made: its text is not in its file exactly once, or a test of its is nowhere."""
    found = (ROOT / "onnxprune" / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    if found != 1:
        return f"{mutant.name}: its text is {found} times in {mutant.file}, not once; give text that is there."
    for test in mutant.tests:
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file() or (name and f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")):
            return f"{mutant.name}: there is no test {test}."
    return None


def failure(package: Path, tests: tuple[str, ...]) -> tuple[str | None, str]:
    """The first of the tests that fails against the package in this folder (None: all pass), and what pytest said."""
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-o",
        "pythonpath=",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    command = [sys.executable, "-m", "pytest", *options, "-m", "not slow", *(str(ROOT / t) for t in tests)]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None, done.stdout
    found = re.search(r"^FAILED \S*?(\w+\.py::.*?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}")
    return found[1], done.stdout


def write(path: Path, text: str) -> None:
    """Its bytecode goes, too: within a second and of the same length, Python would take it for that of the new text."""
    path.write_text(text, encoding="utf-8")
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        old.unlink()


def main(names: list[str]) -> int:
    chosen = [m for m in MUTANTS if not names or m.name in names]
    problems = [problem for m in chosen if (problem := misplaced(m))]
    if problems or not chosen:
        print("\n".join(problems) or f"No mutant has such a name; there are: {', '.join(m.name for m in MUTANTS)}.")
        return 1
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(ROOT / "onnxprune", package / "onnxprune", ignore=shutil.ignore_patterns("__pycache__"))
        control, said = failure(package, tuple(dict.fromkeys(t for m in chosen for t in m.tests)))
        if control:
            print(f"{control} fails without any change:\n{said[-2000:]}")
            return 1
        print("| mutant | file | killed by | seconds |\n| --- | --- | --- | --- |")
        for mutant in chosen:
            path = package / "onnxprune" / mutant.file
            text = path.read_text(encoding="utf-8")
            write(path, text.replace(mutant.old, mutant.new))
            start = time.perf_counter()
            killer, _ = failure(package, mutant.tests)
            write(path, text)
            alive += killer is None
            print(
                f"| {mutant.name} | {mutant.file} | {killer or 'SURVIVES'} | {time.perf_counter() - start:.1f} |",
                flush=True,
            )
    print(f"{len(chosen) - alive} of {len(chosen)} mutants killed.")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
