"""Whether the hub that names of weights lead to can be reached from here."""

import os
import urllib.error
import urllib.parse
import urllib.request

from maft_jax.doctor.bounded import within

SECONDS = 3.0


def hub_state() -> str:
    """One line; it asks the hub's first page and sends nothing but that."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    host = urllib.parse.urlsplit(endpoint).hostname or "HF_ENDPOINT"
    late = f"no answer in {SECONDS:.0f} s"
    return f"{host}: {within(SECONDS, lambda: _ask(endpoint), late)}"


def _ask(endpoint: str) -> str:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return "reached"
    except urllib.error.HTTPError as error:
        return f"reached (it answers {error.code})"
    except (OSError, ValueError) as error:
        return f"not reached ({getattr(error, 'reason', error)})"
