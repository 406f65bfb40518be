"""The key that a server may want of whoever measures it: the first of VILT_API_KEY, as the server itself reads it."""

import os

VARIABLE = "VILT_API_KEY"


def headers() -> dict[str, str]:
    """Make the header that carries it; where there is no key, none."""
    key = os.environ.get(VARIABLE, "").partition(",")[0]
    return {"Authorization": f"Bearer {key}"} if key else {}


def without() -> dict[str, str]:
    """Copy the environment for a server of our own, which shall want none."""
    return {name: value for name, value in os.environ.items() if name.upper() != VARIABLE}
