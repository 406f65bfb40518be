"""The key that a measured server may require: the first in VILT_API_KEY, which the server itself reads, too."""

import os

VARIABLE = "VILT_API_KEY"


def headers() -> dict[str, str]:
    """Return the header that carries the key, or no header if there is no key."""
    key = os.environ.get(VARIABLE, "").partition(",")[0]
    return {"Authorization": f"Bearer {key}"} if key else {}


def without() -> dict[str, str]:
    """Copy the environment without the key: a server that we start requires none."""
    return {name: value for name, value in os.environ.items() if name.upper() != VARIABLE}
