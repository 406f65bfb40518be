"""What /openapi.json says is what the server does: schemathesis reads it and tries to prove otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Running

EXAMPLES = 100  # of each operation, beside those that cover the schema
PATIENCE_S = 60


@pytest.mark.slow
@pytest.mark.parametrize("server", ["two fronts"], indirect=True)  # which go through almost all of one process's code
def test_server_does_what_its_openapi_says(server: Running, tmp_path: Path) -> None:
    """No 5xx, no response outside of the schema, no wrong body accepted, undeclared methods refused with 405."""
    command = [str(Path(sys.executable).with_name("schemathesis"))]
    command += ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    command += ["run", f"{server.url}/openapi.json", "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1"]
    command += ["--request-timeout", str(PATIENCE_S), "--no-color"]

    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    print(ended.stdout.partition("Test cases:")[2])  # noqa: T201 the figures to quote
    assert "Tested: 10" in ended.stdout
    assert server.client.get("/livez").status_code == 200
