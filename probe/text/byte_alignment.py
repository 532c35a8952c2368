"""Where the tokens of a text lie among its bytes. What cannot be followed leaves a gap, and shifts nothing behind it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Place = tuple[int, int]  # start and end in the bytes of the text

# Costs. A skipped byte costs least: of several equal texts the nearest one is taken, however much was replaced. A gap
# costs as much as losing five bytes of tokens, so a match of one or two bytes inside a gap is no match.
LOST = 2**20
GAP = 6 * LOST
NEVER = 2**60


class Piece(NamedTuple):
    """What a token may stand for."""

    spelling: bytes  # b"" for white space and for unknown text
    silent: bool = False  # it may stand for nothing
    places: Sequence[Place] | None = None  # the only places where it may be


def align_bytes(pieces: Sequence[Piece], stream: bytes) -> tuple[list[Place | None], int]:
    """The place of each piece, None where it was not followed, and the cost: 0 if everything was.

    Pieces are in order, and what the stream has behind the last one costs nothing (it was cut). The cost counts gaps,
    the pieces in them, and the bytes; the cheapest alignment is returned.
    """
    index = np.arange(len(stream) + 1)
    matched, skipped = [np.where(index == 0, 0, NEVER)], [GAP + index]  # costs [byte], outside of a gap and in one
    for piece in pieces:
        before = np.minimum(matched[-1], skipped[-1])
        after = matched[-1].copy() if _may_be_empty(piece) else np.full(len(index), NEVER)
        for start, end in _possible_places(piece, stream):
            after[end] = min(after[end], before[start])
        lost = np.minimum(skipped[-1], matched[-1] + GAP) + _lost_cost(piece)
        opened = np.minimum(after + GAP, lost)
        matched.append(after)
        skipped.append(np.minimum.accumulate(opened - index) + index)
    total = np.minimum(matched[-1], skipped[-1])
    end = len(stream) - int(np.argmin(total[::-1]))
    return _trace_back(pieces, matched, skipped, end), int(total[end])


def _trace_back(
    pieces: Sequence[Piece], matched: list[np.ndarray], skipped: list[np.ndarray], end: int
) -> list[Place | None]:
    places: list[Place | None] = [None] * len(pieces)
    in_gap = matched[-1][end] > skipped[-1][end]
    for number in reversed(range(len(pieces))):
        piece, before = pieces[number], np.minimum(matched[number], skipped[number])
        lost = np.minimum(skipped[number], matched[number] + GAP) + _lost_cost(piece)
        while in_gap and skipped[number + 1][end] < lost[end]:  # bytes behind this piece were skipped
            in_gap = skipped[number + 1][end] != matched[number + 1][end] + GAP
            end -= int(in_gap)
        cost = matched[number + 1][end]
        if in_gap:
            in_gap = skipped[number][end] <= matched[number][end] + GAP
            continue
        if _may_be_empty(piece) and matched[number][end] == cost:
            start = end
        elif piece.places is not None:
            start = max(first for first, last in piece.places if last == end and before[first] == cost)
        else:
            start = end - len(piece.spelling)
        places[number] = (start, end)
        in_gap = start < end and skipped[number][start] < matched[number][start]
        end = start
    return places


def _may_be_empty(piece: Piece) -> bool:
    return piece.silent or (piece.spelling == b"" and piece.places is None)


def _lost_cost(piece: Piece) -> int:
    return 0 if _may_be_empty(piece) else LOST * (1 + len(piece.spelling))


def _possible_places(piece: Piece, stream: bytes) -> Sequence[Place]:
    """Where the piece may be, if it is not empty."""
    if piece.places is not None or not piece.spelling:
        return piece.places or ()
    places, start = [], stream.find(piece.spelling)
    while start >= 0:
        places.append((start, start + len(piece.spelling)))
        start = stream.find(piece.spelling, start + 1)
    return places
