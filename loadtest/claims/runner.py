"""Runs designs stage by stage, in onnxruntime sessions with the options of the server's engine."""

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import _pybind_state as state

from loadtest.claims import feeds, picture
from loadtest.claims.plan import Design
from models.batch import Features, collate
from models.image import ImagePatches, to_patches
from models.manifest import load_artifact
from models.text import TextTokens
from server.cpus import PoolThreads
from server.engine import OrtEngine, session_options

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
PREPARATION = ("decode", "preprocess")
PAIR_STAGES = ("interaction", "head")
ARENA = {"arena_extend_strategy": 1}  # grow by what is needed, not by powers of two
SCORE_THRESHOLD = 0.05  # detectron2's ROI_HEADS.SCORE_THRESH_TEST
Stages = dict[str, float]  # seconds
Timed = Callable[[], Stages]


class Sessions:
    """One session per graph, however many designs run it."""

    def __init__(self, provider: str, threads: int, *, shared: bool = True) -> None:
        """Choose where graphs run, on how many threads, and whether they share one arena.

        Without sharing, each of 40 graphs keeps its peak memory, some 13 GB in total.

        Raises: ValueError: this onnxruntime has no such provider.
        """
        self.provider, self.threads, self._shared = provider, threads, shared
        if PROVIDERS[provider] not in onnxruntime.get_available_providers():
            raise ValueError(f"this onnxruntime has no {PROVIDERS[provider]}: install the wheel that has it")
        if provider != "cpu":
            onnxruntime.preload_dlls()
        if shared:
            memory = state.OrtMemoryInfo("Cpu", state.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, state.OrtMemType.DEFAULT)
            onnxruntime.create_and_register_allocator(memory, state.OrtArenaCfg(ARENA))
        self._pools = PoolThreads()
        self._sessions: dict[Path, tuple[onnxruntime.InferenceSession, list[str], list[str]]] = {}

    def run(self, graph: Path, values: dict[str, Any]) -> float:
        """Run a graph on its inputs in `values`, add its outputs there, and return the seconds that it took."""
        session, inputs, outputs = self._load(graph)
        wanted = {name: values[name] for name in inputs}
        self._pools.keep_off()
        started_s = time.perf_counter()
        made = session.run(outputs, wanted)
        taken_s = time.perf_counter() - started_s
        values.update(zip(outputs, made, strict=True))
        return taken_s

    def _load(self, graph: Path) -> tuple[onnxruntime.InferenceSession, list[str], list[str]]:
        if graph not in self._sessions:
            options = session_options(self.threads)
            options.add_session_config_entry("session.use_env_allocators", "1" if self._shared else "0")
            provider = PROVIDERS[self.provider]
            with self._pools.starting():
                session = onnxruntime.InferenceSession(str(graph), options, providers=[provider], enable_fallback=0)
            if session.get_providers()[0] != provider:  # onnxruntime would run on the CPU and not say so
                raise ValueError(f"{provider} does not start on this machine: see the lines above")
            names = [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]
            self._sessions[graph] = (session, *names)
        return self._sessions[graph]


def timed_design(design: Design, sessions: Sessions, jpeg: bytes) -> Timed:
    """Prepare a design: each call decodes a picture, runs every stage once, and returns how long each took."""
    inputs = feeds.draw(design.sources, design.image_px)

    def run() -> Stages:
        stages: Stages = {}
        started_s = time.perf_counter()
        image = picture.read(jpeg)
        decoded_s = time.perf_counter()
        values: dict[str, Any] = {**inputs, "pixel_values": picture.to_pixel_values(image, design.image_px)}
        stages["decode"], stages["preprocess"] = decoded_s - started_s, time.perf_counter() - decoded_s
        for step in design.steps:
            stages[step.stage] = stages.get(step.stage, 0.0) + sessions.run(step.graph, values)
        return stages

    return run


def timed_vilt(design: Design, precision: str, jpeg: bytes, sessions: Sessions) -> Timed:
    """Prepare ViLT's artifact in the server's engine, with the 200 patches and 40 tokens of Table 6.

    On a GPU its graphs run like those of the other designs: the server runs another graph there, in half precision,
    which would not be a fair comparison.

    Raises: ArtifactError: the artifact is damaged, or has no such precision.
    """
    if design.artifact is None:
        raise ValueError(f"{design.name} is not an artifact")
    artifact = load_artifact(design.artifact, precision)
    spec = artifact.manifest.spec
    engine = OrtEngine(artifact, sessions.threads) if sessions.provider == "cpu" else None
    rng = np.random.default_rng(feeds.SEED)
    grid = min(
        (grid for grid in spec.grids if grid[0] * grid[1] >= design.visual_tokens), key=lambda grid: grid[0] * grid[1]
    )
    patches = rng.integers(0, 256, (design.visual_tokens, spec.patch_values), dtype=np.uint8)
    first = spec.first_position_row(grid)
    position_ids = np.arange(first, first + design.visual_tokens, dtype=np.int64)
    text = TextTokens(rng.integers(0, 1000, design.text_tokens), truncated=False)
    batch = [Features(ImagePatches(patches, position_ids, grid), text)]
    inputs = collate(batch)

    def run_parts() -> Stages:
        if engine is not None:
            return engine.run(batch).parts_s
        values: dict[str, Any] = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        return {part: sessions.run(graph, values) for part, graph in artifact.graphs.items()}

    def run() -> Stages:
        started_s = time.perf_counter()
        image = picture.read(jpeg)
        decoded_s = time.perf_counter()
        to_patches(image, spec)
        prepared_s = time.perf_counter()
        parts_s = run_parts()
        return {"decode": decoded_s - started_s, "preprocess": prepared_s - decoded_s, **parts_s}

    return run


def time_pairs(design: Design, sessions: Sessions, num_images: int, repeat: int) -> list[float]:
    """Time a shallow interaction of one text with the kept vectors of many pictures, in seconds."""
    values: dict[str, Any] = feeds.draw(design.sources, design.image_px)
    for step in design.steps:
        sessions.run(step.graph, values)
    rng = np.random.default_rng(feeds.SEED)
    values["image"] = rng.standard_normal((num_images, *values["image"].shape[1:]), np.float32)
    pairs = [step.graph for step in design.steps if step.stage in PAIR_STAGES]
    return [sum(sessions.run(graph, values) for graph in pairs) for _ in range(repeat + 1)][1:]


def time_nms(design: Design, sessions: Sessions, *, detected: int, per_class: int, repeat: int) -> list[float]:
    """Time per-class suppression with so many classes detected, each by so many boxes, in seconds."""
    graph = next(step.graph for step in design.steps if step.stage == "nms")
    count, classes = design.sources["class_scores"].shape
    values: dict[str, Any] = feeds.detections(np.random.default_rng(feeds.SEED), count, classes, detected, per_class)
    values["score_threshold"] = np.array([SCORE_THRESHOLD], np.float32)
    return [sessions.run(graph, values) for _ in range(repeat + 1)][1:]
