"""The entry of vilt-bench: command.py lists what it measures, where all that it needs is installed."""

import sys


def main() -> None:
    try:
        from loadtest.command import measure  # noqa: PLC0415 to say what is missing

        measure()
    except ModuleNotFoundError as error:
        sys.exit(f"vilt-bench needs {error.name}, which is not installed: pip install '.[cpu,loadtest]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
