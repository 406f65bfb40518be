"""The command vilt-serve: settings, logs, models, then uvicorn until a signal."""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterator

import uvicorn
from platformdirs import user_cache_path
from pydantic import ValidationError
from pydantic_settings import CliApp

from models import image
from models.errors import ArtifactError
from models.manifest import load_artifact
from server import logs
from server.admission import Admission
from server.app import create_app
from server.connections import LingeringProtocol
from server.cpus import has_vnni
from server.engine import OrtEngine, count_threads
from server.latency import calibrated
from server.metrics import Metrics
from server.settings import Settings
from server.types import ServedModel

log = logging.getLogger("server")


class Server(uvicorn.Server):
    """uvicorn that says it is not ready, keeps serving for a pause, drains, and ends with status 0."""

    def __init__(self, config: uvicorn.Config, admission: Admission, drain_pause_s: float) -> None:
        super().__init__(config)
        self._admission = admission
        self._drain_pause_s = drain_pause_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal, leave at once on the second; uvicorn would raise it again and exit with 143."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        yield

    def _drain(self) -> None:
        if self._admission.is_draining:
            self.force_exit = self.should_exit = True
            return
        log.info("draining: serving for %g s more, then ending", self._drain_pause_s)
        self._admission.close()
        asyncio.get_running_loop().call_later(self._drain_pause_s, setattr, self, "should_exit", True)


def main() -> None:
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        sys.exit(f"vilt-serve: {'.'.join(map(str, first['loc']))}: {first['msg']}; see vilt-serve --help")
    logs.configure(settings.log_format, settings.log_level)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while it loads: process 1 of a container would ignore it
    try:
        models = load(settings)
    except ArtifactError as error:
        sys.exit(f"vilt-serve: {error}")
    metrics = Metrics()
    admission = Admission(settings.max_queue_entries, metrics, time.perf_counter)
    config = uvicorn.Config(
        create_app(settings, models, admission, metrics),
        http=LingeringProtocol,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    Server(config, admission, settings.drain_pause_s).run()


def load(settings: Settings) -> list[ServedModel]:
    """Verify, load and warm up every artifact.

    Raises: ArtifactError: one of them cannot be served.
    """
    threads = count_threads(settings.threads)
    models: list[ServedModel] = []
    for folder in settings.model:
        artifact = load_artifact(folder, settings.precision, has_vnni=has_vnni())
        if any(model.name == artifact.manifest.name for model in models):
            raise ArtifactError(f"Two artifacts are named {artifact.manifest.name}: export one with another --name.")
        engine = OrtEngine(artifact, threads)
        engine.warm_up()
        image.warm_up(artifact.manifest.spec)
        artifact.text_encoder.encode("warm up?")
        # One scale for a whole activation: in a batch of several, int8's answers would depend on who else asks.
        most = 1 if artifact.precision == "int8" else settings.max_batch_size
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
            cache=settings.cache_dir or user_cache_path("vilt-server"),
            clock=time.perf_counter,
        )
        models.append(ServedModel(artifact=artifact, engine=engine, latency=latency, max_batch_size=most))
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


if __name__ == "__main__":
    main()
