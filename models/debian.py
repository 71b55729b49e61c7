"""Data that Debian ships: fetched with apt-get, from whatever mirror the machine is set up with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import FetchError


@dataclass(frozen=True)
class Data:
    """A folder in a package of Debian; an entry of `manifest.json`.

    `path` lies inside the package. `variable` is an environment variable that names such a folder
    where one is there already.
    """

    name: str
    package: str
    version: str
    sha256: str
    path: str
    variable: str
    licence: str
    about: str


def fetch(data: Data, to: Path) -> Path:
    """Fetch a folder of data and return its path, `to / NAME`. Raises `FetchError`."""
    target = to / data.name
    if target.is_dir():
        return target
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnxprune-", dir=to) as name:
        folder = Path(name)
        call(data, ["apt-get", "download", f"{data.package}={data.version}"], folder)
        packages = list(folder.glob("*.deb"))
        if len(packages) != 1:
            raise FetchError(f"apt-get downloaded no package {data.package}.")
        found = hashlib.sha256(packages[0].read_bytes()).hexdigest()
        if found != data.sha256:
            raise FetchError(f"{packages[0].name} has SHA-256 {found}, but the manifest expects {data.sha256}.")
        call(data, ["dpkg-deb", "--extract", packages[0].name, "content"], folder)
        try:
            os.replace(folder / "content" / data.path, target)
        except OSError as error:
            raise FetchError(
                f"Cannot move '{data.path}' of {packages[0].name} to '{target}': {error.strerror}."
            ) from None
    return target


def call(data: Data, command: Sequence[str], folder: Path) -> None:
    """Run a command of Debian's, or say what to do without."""
    instead = f"(without: set {data.variable} to a folder with the content of '{data.path}')"
    if shutil.which(command[0]) is None:
        raise FetchError(
            f"'{data.name}' comes from Debian's package {data.package}, but there is no {command[0]} here {instead}."
        )
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = ([line for line in result.stderr.splitlines() if line.startswith("E:")] or ["no message"])[0]
        raise FetchError(f"'{' '.join(command)}' failed: {reason.strip()} {instead}.")
