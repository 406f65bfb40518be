"""onnxruntime sessions over an artifact's graphs: the only file that imports onnxruntime.

The three sessions of a CPU precision share one thread pool, so that they never compete for the cores.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from models.batch import Features, Feeds, collate
from models.errors import ArtifactError
from models.image import ImagePatches
from models.manifest import Artifact
from models.text import TextTokens
from server.cpus import usable_cpus
from server.types import PARTS, EngineOutput

WHOLE = "model"  # the graph of a precision that has only one: fp16, which is a GPU's


class OrtEngine:
    """An artifact's graphs, loaded and ready to run."""

    provider = "cpu"
    version: str = onnxruntime.__version__
    overlapping = 1

    def __init__(self, artifact: Artifact) -> None:
        graphs = artifact.graphs
        self._spec = artifact.manifest.spec
        names = (WHOLE,) if WHOLE in graphs else PARTS
        self._sessions = [(part, _session(graphs[part])) for part in names if part in graphs]
        if len(self._sessions) != len(names):
            raise ArtifactError(f"The artifact {artifact.folder} lacks a graph: it has {', '.join(graphs)}.")

    def warm_up(self) -> None:
        """Run the largest input once, so that no request pays for first touches."""
        grid = max(self._spec.grids, key=math.prod)
        patches = np.zeros((math.prod(grid), self._spec.patch_values), np.uint8)
        image = ImagePatches(patches, np.ones(len(patches), np.int64), grid)
        text = TextTokens(np.zeros(self._spec.max_text_tokens, np.int64), truncated=False)
        self.run(collate([Features(image, text)]))

    def padded(self, batch: int, tokens: float) -> tuple[int, float]:
        """Tell that every batch runs at its own shape."""
        return batch, tokens

    def run(self, feeds: Feeds) -> EngineOutput:
        """Compute every head's logits of a batch.

        Units: parts_s in seconds.
        """
        values: dict[str, Any] = {
            "input_ids": feeds.input_ids,
            "patches": feeds.patches,
            "position_ids": feeds.position_ids,
            "mask": feeds.mask,
        }
        parts_s, last_s = {}, time.perf_counter()
        for part, (session, inputs, outputs) in self._sessions:
            values.update(zip(outputs, session.run(outputs, {name: values[name] for name in inputs}), strict=True))
            now_s = time.perf_counter()
            parts_s[part], last_s = now_s - last_s, now_s
        parts_s.pop(WHOLE, None)  # it is inference itself, not a part of it
        return EngineOutput({name: value for name, value in values.items() if name.endswith("_logits")}, parts_s)


def share_threads(threads: int) -> int:
    """Size the one thread pool of all sessions, before the first is made; 0 takes the CPUs. Return the size."""
    size = threads or usable_cpus()
    onnxruntime.set_global_thread_pool_sizes(size, 1)
    return size


def _session(path: Path) -> tuple[onnxruntime.InferenceSession, list[str], list[str]]:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3  # errors; the rest is advice for onnxruntime's developers
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {reason}") from error
    return session, [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]
