"""The entry of vilt-export: command.py is what it does, where all that it needs is installed."""

import sys


def main() -> None:
    try:
        from export.command import export  # noqa: PLC0415 to say what is missing

        export()
    except ModuleNotFoundError as error:
        sys.exit(f"vilt-export needs {error.name}, which is not installed: pip install '.[cpu,export]' in the clone")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
