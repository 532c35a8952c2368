"""Steps as text, as in a Python slice: "5:11"."""


def parse_slice(text: str) -> slice:
    """The slice of "5:11", "10:" or "::2". Raises ValueError for any other text."""
    parts = [int(part) if part.strip() else None for part in text.split(":")]
    if not 2 <= len(parts) <= 3 or parts[2:] == [0]:  # slice("3") would be the first three
        raise ValueError(text)
    return slice(*parts)


def format_slice(steps: slice) -> str:
    """The text of a slice: "5:11", "10:" or "::2"."""
    parts = (steps.start, steps.stop) if steps.step is None else (steps.start, steps.stop, steps.step)
    return ":".join("" if part is None else str(part) for part in parts)
