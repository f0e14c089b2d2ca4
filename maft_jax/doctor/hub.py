"""Whether the hub that names of weights lead to can be reached from here."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request

from maft_jax.doctor.bounded import within

SECONDS = 3.0


def hub_state() -> str:
    """One line; it asks the hub's first page and sends nothing but that."""
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host = endpoint.netloc.rpartition("@")[2]  # what goes before it is nobody's business
    address = endpoint._replace(netloc=host).geturl()
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
