"""All checks of this repository, in order: python tests/run.py [--fast]

Format, lint, types, import contracts, tests. Every check runs, whatever the ones before it found; the tests come last, so that
the output ends with their counts. `--fast` leaves out the tests marked slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent  # the tools of this environment, activated or not
WORKERS = max(1, min(4, os.cpu_count() or 1))
CHECKS = {
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "types": ["mypy"],
    "imports": ["lint-imports", "--no-cache", "--no-logo"],
    "tests": ["pytest", "-n", str(WORKERS), "--dist", "worksteal"],
}


def main() -> int:
    commands = dict(CHECKS)
    if "--fast" in sys.argv[1:]:
        commands["tests"] = [*commands["tests"], "-m", "not slow"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one process per core is enough
    failed = []
    for name, command in commands.items():
        so_far = f" (failed so far: {', '.join(failed)})" if failed else ""
        print(f"== {name}: {' '.join(command)}{so_far}", flush=True)
        start = time.perf_counter()
        call = [str(TOOLS / command[0]), *command[1:]]
        code = subprocess.run(call, cwd=ROOT, env=environment, check=False).returncode
        if code:
            failed.append(name)
        if name != "tests":
            print(f"== {name}: {'FAILED' if code else 'passed'} in {time.perf_counter() - start:.0f} s", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
