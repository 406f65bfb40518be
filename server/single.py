"""The server of one process: models, then uvicorn until a signal."""

import os
import sys
import time

from models.errors import ArtifactError
from server import addresses
from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.listening import Server
from server.loading import load
from server.metrics import Metrics
from server.settings import Settings


def run(settings: Settings) -> None:
    """Serve until a signal; a taken port and an artifact that cannot be served end the process with a sentence."""
    listeners = addresses.take(settings.host, settings.port)
    try:
        models = load(settings)
    except ArtifactError as error:
        sys.exit(f"vilt-serve: {error}")
    metrics = Metrics()
    admission = Admission(settings.max_queue_entries, metrics, time.perf_counter)
    backend = LocalBackend(settings, models, admission, metrics, time.perf_counter)
    server = Server(create_app(settings, models, backend), settings, backend)
    server.run(listeners)
    if server.force_exit:
        os._exit(0)  # Python would wait for its threads, and for ever if a run hangs
