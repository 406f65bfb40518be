"""The image, built by whatever builds here; and its root file system, started without an engine."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PUBLIC_BASE = "python:3.11-slim"
LOCAL_BASE = "localhost/vilt-base-with-gcc"  # Debian's Python of the same version, and what compiles for it
DEBIAN = "bookworm"
PACKAGES = "ca-certificates,gcc,libc6-dev,python3,python3-dev,python3-venv"
PULL_WITHIN_S, BUILD_WITHIN_S = 120, 1200
OF_THIS_MACHINE = ("find-links", "constraint", "no-index")  # pip's settings that mean files which the build cannot see


@dataclass(frozen=True, slots=True)
class Image:
    """What was built."""

    tag: str
    config: dict[str, Any]  # as Docker writes it: Env, Entrypoint, Healthcheck, User, Volumes
    layers: list[str]


@dataclass(frozen=True, slots=True)
class Builder:
    """docker, podman or buildah."""

    name: str

    def pull(self, tag: str) -> bool:
        """Fetch an image, if it can be had."""
        try:
            return _run(self.name, "pull", tag, check=False, timeout_s=PULL_WITHIN_S).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def has(self, tag: str) -> bool:
        return _run(self.name, "inspect", "--type", "image", tag, check=False).returncode == 0

    def build(self, folder: Path, tag: str, *flags: str) -> Image:
        """Build a folder's Dockerfile.

        Raises: subprocess.CalledProcessError: with what the builder said.
        """
        if self.name != "docker":
            # Docker's format knows HEALTHCHECK; chroot asks least of the machine: these tests run in containers, too.
            flags = (*flags, "--format", "docker", "--isolation", "chroot", "--layers", "--network", "host")
        _run(self.name, "build", *flags, "--tag", tag, str(folder), timeout_s=BUILD_WITHIN_S)
        found = json.loads(_run(self.name, "inspect", "--type", "image", tag).stdout)
        if self.name == "buildah":
            return Image(tag, found["Docker"]["config"], found["Docker"]["rootfs"]["diff_ids"])
        apart = {"Healthcheck": found[0]["Healthcheck"]} if "Healthcheck" in found[0] else {}  # so podman has it
        return Image(tag, {**found[0]["Config"], **apart}, found[0]["RootFS"]["Layers"])

    def unpack(self, tag: str, folder: Path) -> None:
        """Lay an image's files into a folder."""
        if self.name == "buildah":
            container = _run("buildah", "from", tag).stdout.strip()
            mounted = _run("buildah", "mount", container).stdout.strip()
            _pipe(["tar", "--create", "--directory", mounted, "."], folder)
            _run("buildah", "rm", container)
        else:
            container = _run(self.name, "create", tag).stdout.strip()
            _pipe([self.name, "export", container], folder)
            _run(self.name, "rm", container)


def find_builder() -> Builder | None:
    """Find one that works: a docker command without its engine does not."""
    asked = {"docker": ["info"], "podman": ["info"], "buildah": ["info"]}
    for name, arguments in asked.items():
        if shutil.which(name) and _run(name, *arguments, check=False).returncode == 0:
            return Builder(name)
    return None


def base_for(builder: Builder) -> str:
    """Pull the public base image; where that cannot be, make one of Debian's packages.

    Raises: FileNotFoundError: there is no debootstrap either. subprocess.CalledProcessError: with what it said.
    """
    if builder.has(PUBLIC_BASE) or builder.pull(f"docker.io/library/{PUBLIC_BASE}"):
        return PUBLIC_BASE
    if not builder.has(LOCAL_BASE):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            root = folder / "root"
            _run(
                "debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root), timeout_s=BUILD_WITHIN_S
            )
            _run("tar", "--create", "--file", str(folder / "root.tar"), "--directory", str(root), ".")
            shutil.rmtree(root)
            (folder / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
            builder.build(folder, LOCAL_BASE)
    return LOCAL_BASE


def pip_secrets(folder: Path) -> list[str]:
    """Hand this machine's settings of pip to the build, as secrets: its index, the authority that signed for it."""
    lines = ["[global]"]
    for line in _run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], value.strip("'\"")
        if name == "cert" and Path(value).is_file():
            shutil.copyfile(value, folder / "ca")
            lines.append("cert = /run/secrets/ca")
        elif name not in OF_THIS_MACHINE and "file:" not in value:
            lines.append(f"{name} = {value}")
    (folder / "pip").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return [part for file in sorted(folder.iterdir()) for part in ("--secret", f"id={file.name},src={file}")]


def _run(*command: str, check: bool = True, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    if check and done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command[:2])
        error.add_note(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        raise error
    return done


def _pipe(source: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    with subprocess.Popen(source, stdout=subprocess.PIPE) as process:
        subprocess.run(
            ["tar", "--extract", "--same-owner", "--directory", str(folder)], stdin=process.stdout, check=True
        )
