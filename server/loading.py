"""Turns artifacts into models that are ready to serve: verified, loaded, warmed up, measured."""

import logging
import time
from pathlib import Path

from platformdirs import user_cache_path

from models import image
from models.errors import ArtifactError
from models.manifest import Artifact, load_artifact
from server.cpus import has_vnni
from server.engine import OrtEngine, count_threads
from server.gpu.program import open_engine
from server.latency import calibrated
from server.memory import check_fits, memory_limit_bytes, returning_what_is_freed
from server.settings import Settings
from server.types import Engine, LoadedModel

log = logging.getLogger("server")
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 8, 32  # at most, unless set


def load(settings: Settings) -> list[LoadedModel]:
    """Verify, load and warm up every artifact, all before any is served: see GpuEngine.warm_up.

    Raises: ArtifactError: one of them cannot be served.
    """
    threads = count_threads(settings.threads)
    on_gpu = settings.provider != "cpu"
    max_batch_size = settings.max_batch_size or (GPU_BATCH_SIZE if on_gpu else CPU_BATCH_SIZE)
    cache = settings.cache_dir or user_cache_path("vilt-server")
    models: list[LoadedModel] = []
    limit_bytes = memory_limit_bytes()
    for folder in settings.model:
        artifact = load_artifact(folder, settings.precision, has_vnni=has_vnni(), on_gpu=on_gpu)
        if not on_gpu:
            check_fits([*(model.artifact for model in models), artifact], limit_bytes)
        if any(model.name == artifact.manifest.name for model in models):
            raise ArtifactError(f"Two artifacts are named {artifact.manifest.name}: export one with another --name.")
        with returning_what_is_freed():
            engine = _engine(artifact, settings.provider, max_batch_size, cache, threads)
        engine.warm_up()
        image.warm_up(artifact.manifest.spec)
        artifact.text_encoder.encode("warm up?")
        # int8 has one scale for a whole activation: in a batch, an answer would depend on the other requests.
        most = 1 if artifact.precision == "int8" else max_batch_size
        latency = calibrated(
            engine,
            artifact.manifest.spec,
            most=most,
            budget_s=settings.calibration_s,
            identity={
                "artifact": artifact.checksum,
                "precision": artifact.precision,
                "provider": engine.provider,
                "runtime": engine.version,
                "threads": threads,
                "most": most,
            },
            cache=cache,
            clock=time.perf_counter,
        )
        model = LoadedModel(
            artifact=artifact,
            provider=engine.provider,
            slice_size=latency.slice_size(most),
            engine=engine,
            latency=latency,
            max_batch_size=most,
        )
        models.append(model)
        log.info(
            "serving %s: %s, %s on %s, %d threads, about %.1f ms a run",
            artifact.manifest.name,
            ", ".join(artifact.manifest.tasks),
            artifact.precision,
            engine.provider,
            threads,
            1000 * latency.run_s(1),
        )
    return models


def _engine(artifact: Artifact, provider: str, most: int, cache: Path, threads: int) -> Engine:
    if provider == "cpu":
        return OrtEngine(artifact, threads)
    return open_engine(artifact, provider, most=most, cache=cache)
