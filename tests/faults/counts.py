"""How often every fault is tried."""

import os

SAID = os.environ.get("PCJAX_FAULTS", "")
FULL = SAID == "full"


def tries(full, otherwise=1):
    """As often as PCJAX_FAULTS says: a number, or `full`, which is what docs/reliability.md promises."""
    return full if FULL else int(SAID or otherwise)
