"""Command line arguments that several benchmarks share, and the types of numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


def at_least(least: Number) -> Callable[[str], Number]:
    """Return an argparse type for numbers >= `least`: integers if `least` is an int, floats otherwise."""

    def number(text: str) -> Number:
        value = type(least)(text)
        if not least <= value < float("inf"):  # nor is nan
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least:g}")
        return value

    return number


def positive(text: str) -> float:
    """Read a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def add_command(
    commands: Any, name: str, text: str | None, description: str | None, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Declare `vilt-bench <name>`: its line in the list of commands, its description, and what it does."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def add_server(parser: argparse.ArgumentParser) -> None:
    """Declare --url and --model, which exclude each other: a running server has its own artifact."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--url", help="measure this running server instead of starting one")
    add_model(either)


def add_model(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--model", type=Path, metavar="DIR", help="artifact to start a server with (default: shapes)")


def add_output(parser: argparse.ArgumentParser, beside: str = "") -> None:
    text = f"also write the result to this JSON file{beside}"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)
