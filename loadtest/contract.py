"""What a server says to a benchmark that does not time it: which models it has, and why it refuses."""

from typing import Any

import httpx

from loadtest import credentials


def accepted(response: httpx.Response) -> httpx.Response:
    """Pass on a response that is no failure.

    Raises: ValueError: it is one; the message is the server's own sentence.
    """
    if response.is_success:
        return response
    try:
        sentence = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # another server's, or a proxy's
        sentence = f"{response.status_code} {response.text[:200]}".strip()
    raise ValueError(f"the server refused {response.request.url.path}: {sentence}")


def models(url: str) -> list[dict[str, Any]]:
    """List the models as the server describes them.

    Raises: ValueError, httpx.HTTPError: it does not.
    """
    response = accepted(httpx.get(f"{url}/v1/models", headers=credentials.headers()))
    try:
        found: list[dict[str, Any]] = response.json()["models"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"what answers at {url} is no ViLT server: /v1/models lists none as one would") from error
    return found


def model_for(url: str, task: str) -> dict[str, Any]:
    """Describe the model that a request is for which names none: the first that serves the task.

    Raises: ValueError: none does, or the server refused; httpx.HTTPError: it failed.
    """
    found = next((model for model in models(url) if task in model.get("tasks", ())), None)
    if found is None:
        raise ValueError(f"no model at {url} serves {task}")
    return found
