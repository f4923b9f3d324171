"""Which examples are held out: a rule that new data does not move."""

import hashlib


def in_test(key: str, share: float) -> bool:
    """Whether `key` falls into the held-out `share` (0 to 1) by its SHA-256."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
