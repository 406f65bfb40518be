"""The vilt-serve command: settings and logs, then one process that serves, or a supervisor of several."""

import logging
import os
import signal
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from server import control, logs
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
    from server import single  # noqa: PLC0415 half a second of imports, which a supervisor would wait for

    single.run(settings)
