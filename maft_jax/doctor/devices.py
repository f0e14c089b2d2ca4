"""The devices that jax sees, as a process of its own tells them: a driver may hang or crash."""

import json
import sys
from typing import Any

from maft_jax.doctor.bounded import answer_of

SECONDS = 60.0

_PROGRAM = """
import json
import jax

def memory(device):
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:
        return None

print(json.dumps([
    {
        "kind": device.device_kind,
        "platform": device.platform,
        "memory": memory(device),
        "compute_capability": str(getattr(device, "compute_capability", "")) or None,
    }
    for device in jax.local_devices()
]))
"""


def jax_devices(seconds: float = SECONDS, program: str = _PROGRAM) -> dict[str, Any]:
    """Devices of this host, what jax complained of, and why there are none, or None."""
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # another program may be using the memory
        "PYTHONSAFEPATH": "1",  # a working folder's jax.py is not jax
    }
    answer = answer_of([sys.executable, "-c", program], seconds, environment)
    said = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    if answer.code == 0:
        devices = json.loads(answer.stdout.splitlines()[-1])
        return {"devices": devices, "said": said[-1:], "problem": None}
    if answer.code is None:
        problem = f"no answer in {seconds:.0f} s"
    else:
        problem = said[-1] if said else f"it ended with code {answer.code}"
    return {"devices": [], "said": said[-1:], "problem": problem}
