"""The entry point of vilt-export; the command itself is in command.py."""

import os
import sys

OURS = ("server", "models", "export", "loadtest")


def main() -> None:
    if sys.path[0] != os.getcwd():  # noqa: PTH109 called as a command: do not import a server.py or models/ from this folder
        os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts
    try:
        from export.command import export  # noqa: PLC0415 here, to name what is not installed

        export()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:  # installing something would not help
            raise
        sys.exit(f"vilt-export needs {error.name}, which is not installed: pip install '.[cpu,export]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
