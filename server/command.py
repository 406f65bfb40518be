"""The vilt-serve command: settings, logs, models, then uvicorn until a signal; or a supervisor of processes."""

import logging
import os
import signal
import sys
import time

from pydantic import ValidationError
from pydantic_settings import CliApp

from models.errors import ArtifactError
from server import addresses, control, logs
from server.admission import Admission
from server.app import create_app
from server.backend import LocalBackend
from server.listening import Server
from server.loading import load
from server.metrics import Metrics
from server.settings import Settings, command_line, explain, warnings
from server.version import own_version

log = logging.getLogger("server")


def serve() -> None:
    if "--version" in sys.argv[1:]:
        print(f"vilt-serve {own_version()}")  # noqa: T201 the output
        return
    try:
        settings = CliApp.run(Settings, cli_settings_source=command_line())
    except ValidationError as error:
        sys.exit(f"vilt-serve: {explain(error)}; see vilt-serve --help")
    logs.configure(settings.log_format, settings.log_level)
    for warning in warnings(settings, os.environ):
        log.warning(warning)
    if settings.workers > 1:  # in this process, but without the libraries that only its children need
        signal.pthread_sigmask(signal.SIG_BLOCK, control.SIGNALS)  # until the supervisor handles them
        os.execv(sys.executable, [sys.executable, "-m", "server.supervisor", *sys.argv[1:]])  # noqa: S606 our own
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
