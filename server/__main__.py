"""The entry of vilt-serve: it can be ended from its first moment on; command.py is what it does."""

import os
import signal


def main() -> None:
    """Handle SIGTERM, then import the rest, which takes a second: process 1 ignores what it does not handle."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from server.command import serve  # noqa: PLC0415 for the reason above

    serve()


if __name__ == "__main__":
    main()
