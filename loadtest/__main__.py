"""The command vilt-bench: every measurement, from outside."""

import argparse

from loadtest import accuracy, length, load, oracle, stages
from loadtest.peers import command as peers
from loadtest.trials import abandon, blocking, deadline, drain, overload, storm, users


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="vilt-bench",
        description="Measure a server from outside, over HTTP; without --url, one is started for the occasion.",
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for module in (
        accuracy,
        length,
        load,
        oracle,
        stages,
        peers,
        overload,
        blocking,
        abandon,
        storm,
        drain,
        deadline,
        users,
    ):
        module.add_to(commands)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
