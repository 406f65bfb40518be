"""What to time: the graphs of each design, as `python -m export.claims` wrote them.

Building them needs torch and takes minutes: it is a command of its own, and what it wrote is kept.
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
    """A tensor that no graph makes."""

    shape: tuple[int, ...]
    dtype: str
    below: int | None = None  # of integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One graph of one stage, what it holds and what a run of it does."""

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
    """A published structure with random weights; ViLT's graphs are those of its artifact."""

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
        """The stages that it has, in the order of STAGES."""
        found = {step.stage for step in self.steps}
        return tuple(stage for stage in STAGES if stage in found)


def named(stage: str) -> str:
    """Write a stage's name as people do."""
    return stage.replace("_", " ").replace("roi", "RoI").replace("nms", "NMS")


def default_folder() -> Path:
    """Where graphs are kept from one run to the next."""
    return user_cache_path("vilt-server") / "claims"


def prepare(folder: Path, names: Iterable[str]) -> list[Design]:
    """Read the plan, after building what it lacks.

    Raises: subprocess.CalledProcessError: building failed; it has said why.
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
        raise ValueError(f"{folder / PLAN} is of another version: remove {folder} and run again")
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
    """Read which versions wrote the graphs."""
    found: dict[str, str] = json.loads((folder / PLAN).read_text())["tools"]
    return found
