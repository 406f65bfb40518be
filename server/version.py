"""The server's version."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Return the server's version; a source tree that was never installed has none."""
    try:
        return version("vilt-server")
    except PackageNotFoundError:
        return "not installed"
