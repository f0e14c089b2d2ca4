"""JSON files that carry a checksum of their content, so that no damage passes for a value."""

import hashlib
import json

from etils import epath

from input_pipeline.records.proposal_records import SCHEMA_VERSION

_SEAL = "seal"


def seal(content: dict) -> bytes:
    """A JSON document of `content`, its schema version and a checksum over both."""
    # Through JSON and back, so that tuples and integer keys are sealed as they will be read.
    content = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **content}))
    sealed = {**content, _SEAL: _checksum(content)}
    return (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode()


def read_sealed(path: epath.Path, advice: str) -> dict:
    """What was sealed, without the seal.

    Raises ValueError, which ends in `advice`, for a corrupt file and for a newer schema.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the file is corrupt ({error}); {advice}") from None
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise ValueError(f"{path}: the file is corrupt (it has no schema_version); {advice}")
    if content["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: the file has schema version {content['schema_version']}, this code reads "
            f"versions up to {SCHEMA_VERSION}; update maft_jax, or write the records again with "
            "this version"
        )
    if content.pop(_SEAL, None) != _checksum(content):
        raise ValueError(
            f"{path}: the file is corrupt or was edited (its seal does not match); {advice}"
        )
    return content


def _checksum(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
