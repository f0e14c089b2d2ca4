"""Whether the hub that names of weights lead to can be reached from here."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request

from maft_jax.doctor.bounded import within
from maft_jax.runtime.addresses import without_logins

SECONDS = 3.0


def hub_is_forbidden() -> bool:
    """Whether the environment says, as the hub's client reads it, not to ask the network."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def hub_state() -> str:
    """One line; it asks the hub's first page and sends nothing but that."""
    address = without_logins(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host = urllib.parse.urlsplit(address).netloc
    late = f"no answer in {SECONDS:.0f} s"
    return f"{host}: {within(SECONDS, lambda: _ask(address), late)}"


def _ask(address: str) -> str:
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS):
            return "reached"
    except urllib.error.HTTPError as error:
        return f"reached (it answers {error.code})"
    except OSError as error:
        return f"not reached ({getattr(error, 'reason', error)})"
    except (ValueError, http.client.HTTPException):
        return "not reached (no address that can be asked)"
