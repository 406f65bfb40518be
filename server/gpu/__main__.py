"""python -m server.gpu: build a GPU's engines, compare them with fp32 on the CPU, and time them, without torch.

The report is JSON on standard output; the exit status is 1 if the comparison fails.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from platformdirs import user_cache_path

from models.errors import ArtifactError
from models.manifest import load_artifact
from server import logs
from server.engine import OrtEngine
from server.gpu import libraries, parity, timing
from server.gpu.buckets import buckets_of
from server.gpu.options import NAMES
from server.gpu.program import graph_name, open_engine


def main() -> None:
    options = _parser().parse_args()
    logs.configure("console", "info")
    try:
        artifact = load_artifact(options.model, "fp16", on_gpu=True)
        began_s = time.monotonic()
        cache = options.cache_dir or user_cache_path("vilt-server")
        engine = open_engine(artifact, options.provider, most=options.most, cache=cache)
        engine.warm_up()
        ready_s = time.monotonic() - began_s
        reference = OrtEngine(load_artifact(options.model, "fp32"))
        gpu = libraries.gpu_name(libraries.load(libraries.DRIVER))
    except ArtifactError as error:
        sys.exit(f"server.gpu: {error}")
    spec = artifact.manifest.spec
    report = {
        "gpu": gpu,
        "onnxruntime": engine.version,
        "artifact": artifact.manifest.name,
        "provider": options.provider,
        "graph": graph_name(artifact.manifest, options.provider),
        "ready_after_s": ready_s,
        "parity": parity.check(engine, reference, spec, most=options.most, shapes=options.shapes),
        "runs": timing.measure(engine, buckets_of(spec, options.most), spec, options.repeat) if options.repeat else [],
    }
    print(json.dumps(report, indent=1))
    if report["parity"]["status"] != "passed":
        sys.exit("server.gpu: the GPU gives other answers than fp32 on the CPU: see the report")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="DIR", help="artifact with fp16 and fp32")
    parser.add_argument("--provider", choices=list(NAMES), default="cuda")
    parser.add_argument("--most", type=int, default=32, metavar="ROWS", help="largest batch (default %(default)s)")
    parser.add_argument("--shapes", type=int, default=1000, help="random shapes to compare (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=0, help="timed runs of each shape (default: none)")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        default=os.environ.get("VILT_CACHE_DIR"),
        help="where TensorRT's engines are kept (default: VILT_CACHE_DIR, else the user's cache folder)",
    )
    return parser


if __name__ == "__main__":
    main()
