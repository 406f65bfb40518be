"""The entry point of vilt-bench; the commands are in command.py, which needs packages that may not be installed."""

import os
import sys

OURS = ("server", "models", "export", "loadtest")


def main() -> None:
    if sys.path[0] != os.getcwd():  # noqa: PTH109 called as a command: a server.py or models/ in this folder is not ours
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts
    try:
        from loadtest.command import measure  # noqa: PLC0415 so that a missing package can be named

        measure()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:  # ours is there but not found: installing would not help
            raise
        sys.exit(f"vilt-bench needs {error.name}, which is not installed: pip install '.[cpu,loadtest]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
