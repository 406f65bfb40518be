"""Numbers that cannot be measured with are refused by every command that takes them."""

import argparse
import re

import pytest

from loadtest.__main__ import main
from loadtest.arguments import at_least, positive

COUNTS = {
    "accuracy --data a": ("limit", "concurrency"),
    "claims": ("repeat",),
    "decode": ("count",),
    "gpu --model a --output b": ("shapes", "workers", "client-processes"),
    "length": ("rounds",),
    "oracle": ("count", "concurrency"),
    "peers --checkpoint a --model b": ("rounds",),
    "retrieval": ("images", "rounds"),
    "stages": ("repeat",),
    "workers": ("workers", "rounds"),
}


@pytest.mark.parametrize(
    ("command", "count"), [(command, count) for command, counts in COUNTS.items() for count in counts]
)
def test_count_of_nothing_is_refused(
    command: str, count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    monkeypatch.setattr("sys.argv", ["vilt-bench", *command.split(), f"--{count}", "0"])

    with pytest.raises(SystemExit):
        main()

    assert re.search(rf"argument --{count}: 0 is not a number of at least \d$", capsys.readouterr().err)


def test_number_is_no_smaller_than_it_may_be() -> None:
    """Whole, unless the least is not."""
    assert at_least(2)("2") == 2
    assert at_least(0.0)("0.5") == 0.5
    for least, text in ((2, "1"), (0.0, "-0.1"), (0.0, "nan"), (0.0, "inf")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is not a number of at least {least:g}$"):
            at_least(least)(text)
    with pytest.raises(ValueError, match="invalid literal"):
        at_least(2)("2.5")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
def test_rate_must_be_above_0(text: str) -> None:
    """And be one."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is not a number above 0$"):
        positive(text)
