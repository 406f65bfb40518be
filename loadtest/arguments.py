"""Types of command line arguments: numbers that can be measured with."""

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def at_least(least: Number) -> Callable[[str], Number]:
    """Make the type of numbers that are no smaller: whole ones, unless the least is not."""

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
