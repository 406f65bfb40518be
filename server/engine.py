"""onnxruntime sessions over an artifact's graphs: the only file that imports onnxruntime.

Runs follow one another, and the threads of a session sleep once its run has ended: sessions do not compete for the
cores, neither with each other nor with decoding and answering.
"""

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from models.batch import Features, collate
from models.errors import ArtifactError
from models.image import ImagePatches
from models.manifest import STANDARD, Artifact
from models.text import TextTokens
from server.cpus import PoolThreads, has_vnni, usable_cpus
from server.types import EngineOutput

EXACT_INT8 = ("session.x64quantprecision", "1")


class OrtEngine:
    """An artifact's graphs, loaded and ready to run."""

    provider = "cpu"
    version: str = onnxruntime.__version__
    device = platform.processor() or platform.machine()
    overlapping = 1

    def __init__(self, artifact: Artifact, threads: int = 0) -> None:
        """Load the graphs of the artifact's precision; 0 threads means one for each usable CPU.

        Raises: ArtifactError: one of them is missing, or cannot be loaded.
        """
        self._spec = artifact.manifest.spec
        self._pools = PoolThreads()
        with self._pools.starting():
            self._sessions = [
                (name, _session(artifact.folder / graph.file, count_threads(threads)))
                for name, graph in artifact.opened().items()
            ]

    def warm_up(self) -> None:
        """Run the largest input once, so that no request pays for first touches."""
        grid = max(self._spec.grids, key=math.prod)
        patches = np.zeros((math.prod(grid), self._spec.patch_values), np.uint8)
        image = ImagePatches(patches, np.ones(len(patches), np.int64), grid)
        text = TextTokens(np.zeros(self._spec.max_text_tokens, np.int64), truncated=False)
        self.run([Features(image, text)])

    def padded(self, batch: int, tokens: float) -> tuple[int, float]:
        """Return the batch's own shape: nothing is padded."""
        return batch, tokens

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        """Compute every head's logits, a row for each pair.

        Units: parts_s in seconds.
        """
        feeds = collate(batch)
        values: dict[str, Any] = {
            "input_ids": feeds.input_ids,
            "patches": feeds.patches,
            "position_ids": feeds.position_ids,
            "mask": feeds.mask,
        }
        parts_s, last_s = {}, time.perf_counter()
        for part, (session, inputs, outputs) in self._sessions:
            self._pools.keep_off()
            values.update(zip(outputs, session.run(outputs, {name: values[name] for name in inputs}), strict=True))
            now_s = time.perf_counter()
            parts_s[part], last_s = now_s - last_s, now_s
        parts_s.pop(STANDARD, None)  # all of inference, not a part of it
        return EngineOutput({name: value for name, value in values.items() if name.endswith("_logits")}, parts_s)


def count_threads(threads: int) -> int:
    """Return the number of threads; 0 means one for each usable CPU."""
    return threads or usable_cpus()


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Choose how a session uses the CPU.

    Within a run threads spin from one operator to the next: waking them each time makes int8 a tenth slower. After it
    they would go on spinning, on the cores that the answer needs; a pool for the whole process cannot be told to stop.
    Memory patterns would keep a block for each input shape, and there are many shapes here.
    Without VNNI, x86 adds pairs of int8 products in 16 bits, which overflow, unless told otherwise: slower, but exact.
    Source: docs/decisions/0009-cpu-time.md.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not has_vnni():
        options.add_session_config_entry(*EXACT_INT8)
    options.log_severity_level = 3  # only errors
    return options


def _session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, list[str], list[str]]:
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {reason}") from error
    return session, [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]
