"""What vilt-serve does: settings, logs, models, then uvicorn until a signal; or a supervisor of several processes."""

import os
import signal
import sys
import time

from pydantic import ValidationError
from pydantic_settings import CliApp

from models.errors import ArtifactError
from server import logs
from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.listening import Server
from server.loading import load
from server.metrics import Metrics
from server.settings import Settings


def serve() -> None:
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        sys.exit(f"vilt-serve: {'.'.join(map(str, first['loc']))}: {first['msg']}; see vilt-serve --help")
    if settings.workers > 1:  # the same process, without the libraries of those that it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it waits until the supervisor handles it
        os.execv(sys.executable, [sys.executable, "-m", "server.supervisor", *sys.argv[1:]])  # noqa: S606 our own
    logs.configure(settings.log_format, settings.log_level)
    try:
        models = load(settings)
    except ArtifactError as error:
        sys.exit(f"vilt-serve: {error}")
    metrics = Metrics()
    admission = Admission(settings.max_queue_entries, metrics, time.perf_counter)
    backend = LocalBackend(settings, models, admission, metrics, time.perf_counter)
    Server(create_app(settings, models, backend), settings, backend).run()
