"""Which version of the server this is."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Tell the server's own version; a tree that was never installed has none."""
    try:
        return version("vilt-server")
    except PackageNotFoundError:
        return "not installed"
