"""Addresses as they may be printed."""

import re


def without_logins(text: object) -> str:
    """Text in which no address has a user or a password, which mirrors of hubs may want."""
    return re.sub(r"://[^/\s]*@", "://", str(text))
