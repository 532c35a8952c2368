"""A prompt in three aligned rows: characters, tokens, words."""

from collections.abc import Sequence

from toushi.cli.terminal import printable
from toushi.probe.base.text_width import pad, text_width

NAMES = ("characters", "tokens", "words")


def format_alignment(prompt: str, tokens: Sequence, words: Sequence, width: int) -> str:
    """Three lines for each part of the prompt that fits into `width` cells.

    A box begins where a token or a word begins. Tokens that share their characters (the four bytes of a rare one) are
    written once, with ×4.
    """
    boxes = {
        0: [(i, i + 1, c) for i, c in enumerate(prompt)],
        1: spans(tokens),
        2: [(w.start, w.end, w.text) for w in words],
    }
    widths = column_widths(prompt, boxes)
    lines: list[str] = []
    for start, end in break_lines(prompt, boxes, widths, width - len(NAMES[0]) - 3):
        for row, name in enumerate(NAMES):
            lines.append((pad(name, len(NAMES[0]) + 2) + draw_row(boxes[row], widths, start, end, row > 0)).rstrip())
        lines.append("")
    return "\n".join(lines[:-1]) if lines else "(the prompt is empty)"


def spans(tokens: Sequence) -> list[tuple[int, int, str]]:
    """(start, end, label), in order and without overlap."""
    groups: list[list] = []
    for token in tokens:
        if token.span is None or token.span[0] == token.span[1]:
            continue
        if groups and token.span[0] < groups[-1][1]:
            groups[-1][1] = max(groups[-1][1], token.span[1])
            groups[-1][2].append(token)
        else:
            groups.append([*token.span, [token]])
    result = []
    for start, end, members in groups:
        texts = list(dict.fromkeys(token.text for token in members))
        result.append((start, end, "+".join(map(printable, texts)) + (f"×{len(members)}" if len(members) > 1 else "")))
    return result


def column_widths(prompt: str, boxes: dict[int, list]) -> list[int]:
    """Cells of each character's column: wide enough for the character, and for its labels in the other rows."""
    widths = [text_width(printable(c)) + 1 for c in prompt]
    for start, end, label in [*boxes[1], *boxes[2]]:
        lacking = text_width(printable(label)) + 2 - sum(widths[start:end])
        widths[end - 1] += max(0, lacking)
    return widths


def break_lines(prompt: str, boxes: dict[int, list], widths: list[int], width: int) -> list[tuple[int, int]]:
    """(start, end) of each line. No token and no word is cut."""
    inside = {i for box in (*boxes[1], *boxes[2]) for i in range(box[0] + 1, box[1])}
    result, start, last = [], 0, 0
    for position in range(1, len(prompt) + 1):
        if sum(widths[start:position]) > width and last > start:
            result.append((start, last))
            start = last
        if position not in inside:
            last = position
    return [*result, (start, len(prompt))] if prompt else result


def draw_row(boxes: list[tuple[int, int, str]], widths: list[int], start: int, end: int, walls: bool) -> str:
    text, at = "", start
    for first, last, label in boxes:
        if not start <= first < end:
            continue
        text += " " * sum(widths[at:first])
        text += pad(("│" if walls else " ") + printable(label), sum(widths[first:last]))
        at = last
    return text
