"""Who may import whom, and that serving never reaches torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"server", "models", "export", "loadtest"}
ALLOWED = {
    "server": {"server", "models"},
    "models": {"models"},
    "export/products.py": {"export", "models", "loadtest", "server"},  # times graphs as the server runs them
    "export/int8_choices.py": {"export", "models", "loadtest"},  # measurements are stamped as all are
    "export": {"export", "models"},
    "loadtest": {"loadtest"},
    "loadtest/claims": {"loadtest", "models", "server"},  # times ViLT in the server's own engine
}
ROOMS = {  # third parties on the serving side, and where alone they may be imported
    "onnxruntime": {"server/engine.py", "server/gpu/program.py"},
    "prometheus_client": {"server/metrics.py"},
    "pydantic_core": {"server/schemas.py", "server/routes.py", "server/channel.py"},
    "PIL": {"models/image.py"},
    "simplejpeg": {"models/jpeg.py"},
    "tokenizers": {"models/text.py"},
    "multipart": {"server/forms.py"},
    "uvicorn": {"server/listening.py", "server/connections.py"},
    "torch": set(),
    "transformers": set(),
}


def imports_of(path: Path) -> set[str]:
    """List the top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_those_it_may(package: str) -> None:
    """Imports point one way: server to models from export."""
    apart = [ROOT / other for other in ALLOWED if other.startswith(f"{package}/")]
    for path in [ROOT / package] if package.endswith(".py") else (ROOT / package).rglob("*.py"):
        if not any(path.is_relative_to(folder) for folder in apart):
            assert imports_of(path) & OURS <= ALLOWED[package], path


def test_benchmark_of_claims_knows_of_the_server_how_it_runs_graphs_alone() -> None:
    """And builds what it times by a command, without torch in its own process."""
    sources = [path.read_text() for path in (ROOT / "loadtest" / "claims").glob("*.py")]

    assert set(re.findall(r"(?:from|import) (server[.\w]*)", "\n".join(sources))) == {"server.cpus", "server.engine"}
    for path in (ROOT / "loadtest").rglob("*.py"):
        assert not imports_of(path) & {"torch", "transformers", "onnx"}, path


@pytest.mark.parametrize("library", ROOMS)
def test_library_stays_in_its_room(library: str) -> None:
    """One file knows each third party; torch has no room here at all."""
    users = {
        str(path.relative_to(ROOT))
        for package in ("server", "models")
        for path in (ROOT / package).rglob("*.py")
        if library in imports_of(path)
    }

    assert users == ROOMS[library]


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("server.single", {"torch", "transformers", "export", "onnx"}),
        ("server.command", {"fastapi", "numpy"}),  # with --workers it only starts the supervisor
        ("server.supervisor", {"fastapi", "numpy", "onnxruntime"}),
        ("server.engine_process", {"fastapi", "starlette", "uvicorn"}),
        ("server.front", {"onnxruntime"}),
    ],
)
def test_process_imports_no_library_that_only_others_need(module: str, unneeded: set[str]) -> None:
    """Not even through something else: each takes a part of the time until the server is ready."""
    check = f"import sys, {module}; print(*sorted({unneeded!r} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)

    assert loaded.stdout.strip() == ""
