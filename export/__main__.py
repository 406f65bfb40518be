"""The entry of vilt-export: command.py is what it does, where all that it needs is installed."""

import os
import sys

OURS = ("server", "models", "export", "loadtest")


def main() -> None:
    if sys.path[0] != os.getcwd():  # noqa: PTH109 called as a command: a server.py or models/ of this folder is not ours
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts
    try:
        from export.command import export  # noqa: PLC0415 to say what is missing

        export()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:  # it is there, and not found: no installing helps
            raise
        sys.exit(f"vilt-export needs {error.name}, which is not installed: pip install '.[cpu,export]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
