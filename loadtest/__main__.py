"""The entry of vilt-bench: command.py lists what it measures, where all that it needs is installed."""

import os
import sys

OURS = ("server", "models", "export", "loadtest")


def main() -> None:
    if sys.path[0] != os.getcwd():  # noqa: PTH109 called as a command: a server.py or models/ of this folder is not ours
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts
    try:
        from loadtest.command import measure  # noqa: PLC0415 to say what is missing

        measure()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:  # it is there, and not found: no installing helps
            raise
        sys.exit(f"vilt-bench needs {error.name}, which is not installed: pip install '.[cpu,loadtest]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
