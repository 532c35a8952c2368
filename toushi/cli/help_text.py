"""Lays out the help of a command: what it does, then its arguments, wrapped to the width of the terminal."""

import re
import textwrap
from collections.abc import Iterator

from toushi.cli.terminal import terminal_width

UNSET = re.compile(r"\s*\(default:\s*(?:None|False|'')?\)")  # the text of such an option says what holds without it
COLUMN = 22  # where the meaning of an argument begins


def format_help(description: str, arguments: str) -> str:
    """The whole help. `description` is its `ABOUT`, `arguments` the plain help that tyro prints for it."""
    usage, _, groups = arguments.partition("\n\n")
    lines = [_wrap(usage.removeprefix("usage: "), " " * 7, first="usage:"), "", _wrap_prose(description)]
    for title, name, meaning in _entries(groups):
        name = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"\1 ...", name)
        meaning = UNSET.sub("", " ".join(meaning.split()))
        lines += ["", f"{title}:"] if title else [_wrap(meaning, " " * COLUMN, first=f"  {name}")]
    return "\n".join(lines)


def _entries(groups: str) -> Iterator[tuple[str, str, str]]:
    """(title, "", "") of each group, and ("", name, meaning) of each argument in it."""
    argument = r"^  (\S.*?)(?:\n| {2,})((?:.*\n)(?: {3,}.*\n)*)"
    for group in re.split(r"^ (?=\w)", groups, flags=re.MULTILINE)[1:]:
        title, _, body = group.partition("\n")
        yield title.strip(), "", ""
        for name, meaning in re.findall(argument, f"{body}\n", re.MULTILINE):
            yield "", name.strip(), meaning


def _wrap_prose(text: str) -> str:
    """The text with its paragraphs wrapped. Those with indented lines are examples, and stay as they are."""
    return "\n\n".join(part if re.search("^  ", part, re.MULTILINE) else _wrap(part, "") for part in text.split("\n\n"))


def _wrap(text: str, indent: str, first: str = "") -> str:
    """The text, wrapped and indented; its first line begins with `first`, which has a line of its own if it is long."""
    width = min(terminal_width(), 100)
    if first and len(first) >= len(indent):
        return f"{first}\n{_wrap(text, indent)}"
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return first + "\n".join(lines)[len(first) :]
