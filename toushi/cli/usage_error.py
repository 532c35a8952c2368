"""Says in one line what is wrong with the arguments of a command, from the box that tyro prints."""

import re
from itertools import dropwhile, pairwise, takewhile

# What tyro prints -> what a user reads.
SENTENCES = {
    r"Unrecognized options: ([^-].*)": r"these arguments are not known: \1; if they belong to a text, put quotes around all of it",
    r"Unrecognized options: (.*)": r"these arguments are not known: \1",
    r"Missing from .*?: (.*)": r"\1 is missing",
    r"Missing value for argument '(.*?)'.*": r"\1 needs a value",
    r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of (.*)\.": r"\2 must be one of \3, but \1 came",
    r"Error parsing (\S+): .*INT could .* \['(.*?)'\].*": r"\1 must be a whole number, but \2 came",
    r"Error parsing (\S+): .*int\(\).* '(.*?)'.*": r"\1 must be a whole number, but \2 came",
    r"Error parsing (\S+): .*FLOAT could .* \['(.*?)'\].*": r"\1 must be a number, but \2 came",
    r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]": r"\1 must be whole numbers, but \2 came",
}


def summarize_usage_error(box: str) -> str:
    """One line from the box: what is wrong, and the nearest option."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^[│╭╰╮╯\s]+|[│╭╰╮╯\s]+$", "", line) for line in plain.splitlines()]
    title, *rest = [line for line in lines if line] or ["wrong arguments"]
    body = list(takewhile(lambda line: not _is_rule(line) and line != "Got errors:", dropwhile(_is_rule, rest)))
    if body and body[0].startswith("Missing from"):
        body = body[:2]  # without the help of the argument
    summary = re.sub(r"(?<=Expected one of )\((.*)\)", _format_choices, " ".join(body) or title)
    for pattern, sentence in SENTENCES.items():
        summary = re.sub(f"^{pattern}$", sentence, summary)
    near = next((after for line, after in pairwise(rest) if line.startswith("Perhaps you meant")), "")
    return summary + (f"; did you mean {near}?" if near else "")


def _format_choices(choices: re.Match[str]) -> str:
    return ", ".join(sorted(set(re.findall("'(.*?)'", choices[1])) - {"None"}))


def _is_rule(line: str) -> bool:
    return set(line) <= set("─-")
