"""The artifact folder: what `manifest.json` says, and the checks of it before anything is served.

artifact/
  manifest.json       what the model is, its files with their SHA-256, how it was made and how exact it is
  tokenizer.json      text to ids
  labels.json         answers of the question answering head, in order; only if there is one
  fp32/*.onnx         the graphs of one precision; fp16 has standard.onnx, and cuda.onnx or kernels.onnx, each the whole
                      model
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.errors import ArtifactError
from models.spec import ViltSpec
from models.text import TextEncoder

FORMAT_VERSION = 1
MANIFEST, TOKENIZER, LABELS = "manifest.json", "tokenizer.json", "labels.json"
# A CPU precision's graphs; a GPU's has two, each the whole model: of standard operators, and for CUDA of onnxruntime's
# or of our own.
PARTS = ("text_embedding", "visual_embedding", "interaction")
STANDARD, CUDA, KERNELS = "standard", "cuda", "kernels"
# The logits that answer each task; the first that exist.
TASKS = {"vqa": ("vqa_logits",), "itm": ("itm_logits", "rank_logits"), "rank": ("rank_logits",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the artifact, relative to its folder."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The graphs of one precision, by name, and what was measured about them."""

    graphs: dict[str, FileEntry]
    opset: int
    parity: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)  # how many answers it changes; fp32 has no gate to pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is; written by the export, verified by the server."""

    name: str
    description: str
    spec: ViltSpec
    heads: dict[str, int]  # logits by name, and how many
    files: dict[str, FileEntry]
    precisions: dict[str, Precision]
    source: dict[str, Any]
    tools: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the heads can serve."""
        return tuple(task for task, any_of in TASKS.items() if any(head in self.heads for head in any_of))

    def write(self, folder: Path) -> None:
        """Write `manifest.json`."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified artifact folder, one precision chosen, tokenizer and labels loaded."""

    folder: Path
    manifest: Manifest
    precision: str
    labels: tuple[str, ...]
    text_encoder: TextEncoder

    @property
    def graphs(self) -> dict[str, Path]:
        """The chosen precision's graph files, by name."""
        entries = self.manifest.precisions[self.precision].graphs
        return {name: self.folder / entry.file for name, entry in entries.items()}

    def opened(self, whole: str = STANDARD) -> dict[str, FileEntry]:
        """Return the graphs that a provider opens: the three parts or, in fp16, the `whole` of that name.

        Raises: ArtifactError: one of them is missing.
        """
        entries = self.manifest.precisions[self.precision].graphs
        names = (whole,) if self.precision == "fp16" else PARTS
        if missing := [name for name in names if name not in entries]:
            raise ArtifactError(
                f"The artifact {self.folder} lacks the graph {missing[0]} in {self.precision}; it has"
                f" {', '.join(entries)}: export it again."
            )
        return {name: entries[name] for name in names}

    @property
    def checksum(self) -> str:
        """A digest of the chosen precision's graphs, computed from the manifest's digests."""
        return _digest(self.manifest.precisions[self.precision].graphs.values())

    @property
    def identity(self) -> str:
        """A digest of everything that determines an answer: the graphs, the tokenizer, the labels."""
        return _digest((*self.manifest.precisions[self.precision].graphs.values(), *self.manifest.files.values()))

    @property
    def short_identity(self) -> str:
        """The first 12 digits of the identity, for people to compare."""
        return self.identity[:12]


def describe_file(folder: Path, file: str) -> FileEntry:
    """Compute a file's entry in the manifest."""
    path = folder / file
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return FileEntry(file=file, sha256=digest, size_bytes=path.stat().st_size)


def load_artifact(
    folder: Path, precision: str = "auto", *, has_vnni: bool = False, on_gpu: bool = False, opens_graphs: bool = True
) -> Artifact:
    """Read an artifact folder and verify every file that the precision needs; the graphs only if `opens_graphs`.

    On a CPU, "auto" is int8 if it has passed its gate and the processor has VNNI, else fp32. A GPU runs only fp16;
    "auto" requires that it has passed its gate.

    Raises: ArtifactError: something is missing, damaged or made for another version or processor; the message is one
        sentence.
    """
    manifest = read_manifest(folder)
    has_passed = {name for name, one in manifest.precisions.items() if one.gate.get("status") == "passed"}
    if on_gpu:
        chosen = "fp16" if precision == "auto" else precision
        if chosen != "fp16":
            raise ArtifactError(f"A GPU runs the graph in fp16, not those in {chosen}: they are for --provider cpu.")
        if precision == "auto" and chosen in manifest.precisions and chosen not in has_passed:
            raise ArtifactError(
                f"The fp16 graph of {folder} has not passed its gate: export it with --eval-data, or serve it anyway"
                " with --precision fp16."
            )
    else:
        chosen = precision if precision != "auto" else "int8" if "int8" in has_passed and has_vnni else "fp32"
    if chosen not in manifest.precisions:
        have = ", ".join(manifest.precisions)
        raise ArtifactError(f"The artifact {folder} has no precision {chosen}; it has {have}.")
    answers = "vqa_logits" in manifest.heads
    for file in (TOKENIZER, LABELS) if answers else (TOKENIZER,):
        if file not in manifest.files or manifest.files[file].file != file:
            raise ArtifactError(f"{folder / MANIFEST} does not list {file}, which its heads need: export it again.")
    graphs = manifest.precisions[chosen].graphs.values() if opens_graphs else ()
    for entry in (*manifest.files.values(), *graphs):
        _verify(folder, entry)
    labels = _read_labels(folder / LABELS, manifest.heads["vqa_logits"]) if answers else ()
    encoder = TextEncoder(folder / TOKENIZER, manifest.spec.max_text_tokens)
    return Artifact(folder=folder, manifest=manifest, precision=chosen, labels=labels, text_encoder=encoder)


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` without verifying the files it names.

    Raises: ArtifactError: it is missing, not JSON, or not of this format.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}; make one with vilt-export.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}; this server reads {FORMAT_VERSION}: export it again."
        )
    try:
        precisions = {
            name: Precision(
                graphs={part: FileEntry(**entry) for part, entry in fields["graphs"].items()},
                opset=fields["opset"],
                parity=fields["parity"],
                gate=fields.get("gate", {}),
            )
            for name, fields in raw.pop("precisions").items()
        }
        files = {name: FileEntry(**entry) for name, entry in raw.pop("files").items()}
        return Manifest(**{**raw, "spec": ViltSpec(**raw["spec"])}, files=files, precisions=precisions)
    except (TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a manifest: {error}.") from error


def _digest(entries: Iterable[FileEntry]) -> str:
    return hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()


def _read_labels(path: Path, expected: int) -> tuple[str, ...]:
    try:
        labels = tuple(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a JSON list of answers: {error}.") from error
    if len(labels) != expected:
        raise ArtifactError(f"{path} has {len(labels)} labels for {expected} logits.")
    return labels


def _verify(folder: Path, entry: FileEntry) -> None:
    try:
        found = describe_file(folder, entry.file)
    except OSError as error:
        raise ArtifactError(f"The artifact {folder} lacks {entry.file}: {error.strerror}.") from error
    if found.sha256 != entry.sha256:
        raise ArtifactError(
            f"The artifact {folder} is damaged: {entry.file} has SHA-256 {found.sha256[:12]}…,"
            f" its manifest says {entry.sha256[:12]}…; copy or export it again."
        )
