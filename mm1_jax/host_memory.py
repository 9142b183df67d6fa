"""Memory of this machine and process, in bytes."""

import resource
import sys
from pathlib import Path

# Bytes per unit of ru_maxrss.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def available_bytes() -> int | None:
    """Memory that a process can allocate without swapping; None where it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
