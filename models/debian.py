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
    """A folder of data; an entry of `manifest.json`.

    `variable` is an environment variable that names such a folder where one is there already.
    """

    name: str
    variable: str
    licence: str
    about: str

    def make(self, folder: Path) -> Path:
        """The folder, made in an empty one. Raises `FetchError`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Content(Data):
    """What a package holds at `path`; `sha256` is the package's."""

    package: str
    version: str
    sha256: str
    path: str

    def make(self, folder: Path) -> Path:
        """Download the package and unpack it, without installing it."""
        call(self, ["apt-get", "download", f"{self.package}={self.version}"], folder)
        packages = list(folder.glob("*.deb"))
        if len(packages) != 1:
            raise FetchError(f"apt-get downloaded no package {self.package}.")
        found = hashlib.sha256(packages[0].read_bytes()).hexdigest()
        if found != self.sha256:
            raise FetchError(f"{packages[0].name} has SHA-256 {found}, but the manifest expects {self.sha256}.")
        call(self, ["dpkg-deb", "--extract", packages[0].name, "content"], folder)
        return folder / "content" / self.path


@dataclass(frozen=True)
class Descriptions(Data):
    """A file `Translation-en` with the English descriptions of all packages, as the machine's mirror has them.

    They differ between releases of Debian, so that there is no digest.
    """

    def make(self, folder: Path) -> Path:
        """Fetch apt's lists into a folder of their own, and nothing but the descriptions."""
        lists = folder / "lists"
        for path in (lists / "partial", folder / "cache" / "archives" / "partial", folder / "content"):
            path.mkdir(parents=True)
        options = {
            "Dir::State::lists": lists,
            "Dir::Cache": folder / "cache",
            "Acquire::Languages": "en",
            "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false",
        }
        call(self, ["apt-get", *(f"-o{key}={value}" for key, value in options.items()), "update"], folder)
        files = sorted(lists.glob("*_i18n_Translation-en*"), key=lambda path: path.stat().st_size)
        if not files:
            raise FetchError("apt-get update brought no English descriptions.")
        text = call(self, ["/usr/lib/apt/apt-helper", "cat-file", str(files[-1])], folder)
        (folder / "content" / "Translation-en").write_text(text, encoding="utf-8")
        return folder / "content"


def fetch(data: Data, to: Path) -> Path:
    """Fetch a folder of data and return its path, `to / NAME`. Raises `FetchError`."""
    target = to / data.name
    if target.is_dir():
        return target
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnxprune-", dir=to) as name:
        made = data.make(Path(name).resolve())
        try:
            os.replace(made, target)
        except OSError as error:
            raise FetchError(f"Cannot move '{made}' to '{target}': {error.strerror}.") from None
    return target


def call(data: Data, command: Sequence[str], folder: Path) -> str:
    """What a command of Debian's prints; where there is none or it fails, the error says what to do instead."""
    instead = f"(instead, {data.variable} can name a folder: {data.about})"
    if shutil.which(command[0]) is None:
        raise FetchError(f"'{data.name}' comes from Debian, but there is no {command[0]} here {instead}.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        reason = ([line for line in result.stderr.splitlines() if line.startswith("E:")] or ["no message"])[0]
        raise FetchError(f"'{command[0]} {command[-1]}' failed: {reason.strip()} {instead}.")
    return result.stdout
