"""Byte counts as people write them."""

import math
import re

from toushi.probe.base.errors import ToushiError


def parse_bytes(text: str, name: str = "budget") -> int:
    """Bytes of "20GB", "500 MB" or "8e9". `name` is that of the argument, for the error."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([kMGT]?)B?", text.strip(), re.IGNORECASE)
    try:
        size = float(match[1]) * 1000 ** ("kmgt".index(match[2].lower()) + 1 if match[2] else 0) if match else 0
    except ValueError:
        size = 0
    if not 1 <= size < math.inf:
        raise ToushiError(f"{name} must be a size on disk such as 20GB or 500MB, but {text} came")
    return int(size)


def format_bytes(count: float) -> str:
    """As in "12 B", "1.23 kB", "24.6 GB": at most three significant digits, units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
