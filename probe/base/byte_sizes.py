"""Byte counts for people."""


def format_bytes(count: float) -> str:
    """As in "12 B", "1.23 kB", "24.6 GB": at most three significant digits, units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
