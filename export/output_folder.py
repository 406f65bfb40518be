"""The folder that an export writes to: an earlier artifact stays whole there until a later one is complete."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models.manifest import LABELS, MANIFEST, TOKENIZER

STAGING = ".export-"
PRECISIONS = ("fp32", "int8", "fp16")


class OutputError(Exception):
    """The artifact folder cannot be written; the message says why."""


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Yield a folder to write to, whose files replace an earlier export's once all of them are there.

    Raises: OutputError: another export writes there, or files of the same names that are no export's, or the folder
        cannot be written, for example on a full disk.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Inside the output, so that renaming stays on one file system even if the output is a mount.
        with _alone(output), tempfile.TemporaryDirectory(prefix=STAGING, dir=output) as staging:
            _refuse_foreign(output)
            yield Path(staging)
            _replace(output, Path(staging))
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free space there, or give" if is_full else "give"
        raise OutputError(
            f"The artifact cannot be written to {output} ({error.strerror or error}): {advice} --output a folder that"
            " can be written to."
        ) from error


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, and remove what a killed export has left there."""
    opened = os.open(output, os.O_RDONLY)
    try:
        if _lock(opened, output):
            for left in output.glob(f"{STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, output: Path) -> bool:
    """Lock a folder; return False if its file system cannot, as leftovers then look like another export's files."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"Another export writes to {output}: wait for it, or give another --output.") from error
    except OSError:
        return False
    return True


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace files that have our names and are not an earlier export's."""
    there = [name for name in (MANIFEST, LABELS, TOKENIZER, *PRECISIONS) if (output / name).exists()]
    if there and not _is_artifact(output):
        raise OutputError(
            f"{output} has {', '.join(there)} and no manifest.json of an earlier export: what is there would be"
            " replaced, so give --output another folder, or remove it first."
        )


def _is_artifact(output: Path) -> bool:
    try:
        manifest = json.loads((output / MANIFEST).read_text())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest


def _replace(output: Path, complete: Path) -> None:
    """Replace an earlier export's files, and only those; the manifest goes first and comes last."""
    for file in (MANIFEST, LABELS):
        (output / file).unlink(missing_ok=True)
    for precision in PRECISIONS:
        if (output / precision).exists():
            shutil.rmtree(output / precision)
    for path in sorted(complete.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(output / path.name)
