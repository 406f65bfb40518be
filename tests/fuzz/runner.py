"""What the fuzz targets share: a corpus to begin with, a stated time, limits of time and memory for each input.

The fuzzer is atheris, which is libFuzzer for Python. Whatever it finds ends the run with a trace, and is written to
runs/fuzz/TARGET, from where `--input FILE` tries it again.
"""

import argparse
import hashlib
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

INPUT_TIMEOUT_S = 10  # of a single input
RSS_LIMIT_MB = 1_500
MAX_INPUT_BYTES = 65_536
FROM_SEED = 0.5  # of the inputs are mutated from a seed: what differs only in C adds no coverage, and is forgotten


def fuzz(name: str, target: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Mutate the seeds, and what they led to, for so many seconds."""
    parser = argparse.ArgumentParser(description=f"Fuzz {name}.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this once instead")
    options = parser.parse_args()
    if options.input:
        target(options.input.read_bytes())
        return
    folder = Path("runs", "fuzz", name)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    first = list(seeds)
    for seed in first:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311 inputs, not secrets
        mutated: bytes = atheris.Mutate(rng.choice(first) if rng.random() < FROM_SEED else data, max_size)
        return mutated

    flags = {
        "max_total_time": options.seconds,
        "seed": options.seed,
        "timeout": INPUT_TIMEOUT_S,
        "rss_limit_mb": RSS_LIMIT_MB,
        "max_len": MAX_INPUT_BYTES,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/",
    }
    arguments = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, target, custom_mutator=mutate)
    atheris.Fuzz()
