"""The folder that an export writes to: an earlier artifact stays whole there until a later one is complete."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models.manifest import LABELS, MANIFEST

STAGING = ".export-"


class OutputError(Exception):
    """The artifact folder cannot be written; the message says why."""


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Give a folder to write to, whose files replace an earlier export's once all of them are there.

    Raises: OutputError: another export writes there, or the system refuses to write, be it at the start or at the last
        byte of a full disk.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Inside the output: a rename then crosses no file system, should the output itself be mounted.
        with _alone(output), tempfile.TemporaryDirectory(prefix=STAGING, dir=output) as staging:
            yield Path(staging)
            _replace(output, Path(staging))
    except OSError as error:
        raise OutputError(
            f"The artifact cannot be written to {output} ({error.strerror or error}): give --output a folder that can"
            " be written to."
        ) from error


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, however that ends; what a killed export left there goes."""
    opened = os.open(output, os.O_RDONLY)
    try:
        if _lock(opened, output):
            for left in output.glob(f"{STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, output: Path) -> bool:
    """Lock a folder if its file system can; without that nobody can tell what is left there from what is in use."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"Another export writes to {output}: wait for it, or give another --output.") from error
    except OSError:
        return False
    return True


def _replace(output: Path, complete: Path) -> None:
    """Remove what an earlier export wrote, and only that; a folder is served by its manifest: first out, last in."""
    for file in (MANIFEST, LABELS):
        (output / file).unlink(missing_ok=True)
    for precision in ("fp32", "int8", "fp16"):
        if (output / precision).exists():
            shutil.rmtree(output / precision)
    for path in sorted(complete.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(output / path.name)
