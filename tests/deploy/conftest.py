"""The image, built once, and its files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .building import ROOT, Builder, Image, base_for, find_builder, pip_secrets

IGNORED = (ROOT / ".dockerignore").read_text().splitlines()  # all, but what it says with an exclamation mark
CONTEXT = ("Dockerfile", ".dockerignore", *(line[1:] for line in IGNORED if line.startswith("!")))


@dataclass(frozen=True, slots=True)
class Built:
    """The image, what it stands on, and both as folders."""

    builder: Builder
    image: Image
    flags: tuple[str, ...]  # that it was built with
    root: Path
    base_root: Path
    source: Path  # a copy of what it was built from


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--need-image", action="store_true", help="fail where no image can be built, instead of skipping")


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Build the image, or skip and say what is missing."""

    def give_up(reason: str) -> None:
        (pytest.fail if request.config.getoption("--need-image", default=False) else pytest.skip)(reason)

    if os.geteuid() != 0 or not shutil.which("unshare"):
        give_up("starting an image's files takes root, on Linux")
    builder = find_builder()
    if builder is None:
        give_up("there is no docker with its engine, no podman and no buildah: make tools installs one")
    assert builder is not None
    folder = tmp_path_factory.mktemp("image")
    try:
        base = base_for(builder)
    except FileNotFoundError:
        give_up("the base image cannot be pulled, and debootstrap is not there to make one: make tools installs it")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        give_up(f"the base image cannot be pulled, nor made of Debian's packages: {error}")
    (folder / "secrets").mkdir()
    flags = ("--build-arg", f"BASE={base}", "--target", "cpu", *pip_secrets(folder / "secrets"))
    source = folder / "source"
    source.mkdir()
    for name in CONTEXT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    image = builder.build(source, "localhost/vilt-server:test", *flags)
    builder.unpack(image.tag, folder / "root")
    builder.unpack(base, folder / "base")
    yield Built(builder, image, flags, folder / "root", folder / "base", source)
    for name in ("root", "base"):
        shutil.rmtree(folder / name)
