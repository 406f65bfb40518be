"""The entry of vilt-serve: it can be ended from its first moment on; command.py is what it does."""

import os
import signal
import sys


def main() -> None:
    """Handle signals, then import the rest, which takes a second: process 1 ignores what it does not handle."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C, without a traceback
    if sys.path[0] != os.getcwd():  # noqa: PTH109 called as a command: a server.py or models/ of this folder is not ours
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts
    from server.command import serve  # noqa: PLC0415 for the reason above

    serve()


if __name__ == "__main__":
    main()
