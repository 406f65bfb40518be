"""The graphs of each design, as `python -m export.claims` writes them.

Building them needs torch and takes minutes, so it is a separate command, and its output is kept.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

PLAN = "claims.json"
FORMAT_VERSION = 3
VILT = "vilt"
NAMES = (
    *("uniter", "oscar", "vinvl", "visualbert", "unicoder-vl", "imagebert", "vilbert", "lxmert"),
    *("pixel-bert-r50", "pixel-bert-x152", "x-lxmert", "clip", "vse++", "scan", VILT),
)
STAGES = (
    "visual_backbone",
    "region_proposal",
    "roi_head",
    "nms",
    "visual_embedding",
    "text_embedding",
    "interaction",
    "head",
)
DETECTOR = STAGES[:4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A tensor that is read but that no graph makes."""

    shape: tuple[int, ...]
    dtype: str
    below: int | None = None  # for integers: the largest is below


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One graph of one stage, with its parameters and operations."""

    stage: str
    graph: Path
    parameters: int
    dictionary_parameters: int
    convolution_macs: int
    product_macs: int

    @property
    def macs(self) -> int:
        return self.convolution_macs + self.product_macs


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A published structure with random weights; the graphs of ViLT are those of an artifact."""

    name: str
    title: str
    family: str
    image_px: tuple[int, int]  # rows, columns
    visual_tokens: int
    text_tokens: int
    steps: tuple[Step, ...]
    sources: dict[str, Source]
    artifact: Path | None

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages, in the order of STAGES."""
        found = {step.stage for step in self.steps}
        return tuple(stage for stage in STAGES if stage in found)


def named(stage: str) -> str:
    """Format a stage's name for people."""
    return stage.replace("_", " ").replace("roi", "RoI").replace("nms", "NMS")


def default_folder() -> Path:
    """Return where graphs are kept between runs."""
    return user_cache_path("vilt-server") / "claims"


def prepare(folder: Path, names: Iterable[str]) -> list[Design]:
    """Read the plan, after building the designs that it lacks.

    Raises: subprocess.CalledProcessError: building failed, and has printed why.
    """
    wanted, have = set(names), set()
    if (folder / PLAN).exists():
        have = {design.name for design in read(folder)}
    if not wanted <= have:
        models = [name for name in NAMES if name in wanted | have]
        command = [sys.executable, "-m", "export.claims", "--output", str(folder), "--models", *models]
        subprocess.run(command, check=True)  # noqa: S603 our own
    return [design for design in read(folder) if design.name in wanted]


def read(folder: Path) -> list[Design]:
    """Read the designs of a folder, in the plan's order.

    Raises: ValueError: another version wrote the plan.
    """
    plan = json.loads((folder / PLAN).read_text())
    if plan["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{folder / PLAN} was written by another version: remove {folder} and run again")
    designs = []
    for fields in plan["designs"]:
        artifact = folder / fields["artifact"] if "artifact" in fields else None
        steps = [Step(**{**step, "graph": (artifact or folder) / step["graph"]}) for step in fields["steps"]]
        sources = {
            name: Source(**{**source, "shape": tuple(source["shape"])})
            for name, source in fields.get("sources", {}).items()
        }
        changed = {"steps": tuple(steps), "sources": sources, "artifact": artifact}
        designs.append(Design(**{**fields, **changed, "image_px": tuple(fields["image_px"])}))
    return designs


def tools(folder: Path) -> dict[str, str]:
    """Read which versions of packages wrote the graphs."""
    found: dict[str, str] = json.loads((folder / PLAN).read_text())["tools"]
    return found
