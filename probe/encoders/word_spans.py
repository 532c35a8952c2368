"""Characters of the raw text for the tokens of a fast tokenizer of transformers.

Fast tokenizers carry offsets through their normalisers (NFKC, lower-casing, stripped accents), counted in code points
of the raw text. Offsets that they leave out or invent are corrected here.
"""

import unicodedata
from collections.abc import Sequence

from toushi.probe.text.alignment import Span, Token

JOINTS = "▁Ġ"  # a space at the beginning of a piece, in SentencePiece and byte-level BPE


def tokens_from_offsets(
    text: str, ids: Sequence[int], pieces: Sequence[str], offsets: Sequence[Span], added: Sequence[int]
) -> tuple[Token, ...]:
    """One Token for each id. `added` is 1 at tokens that the tokenizer added itself (<s>, [CLS], …).

    Kinds: `special` for those; `template` for a ▁ that the tokenizer puts before the text, whose offset wrongly names
    characters; `text` for all others, also for an unknown character.
    """
    spans = [_span(text, piece, offset) for piece, offset in zip(pieces, offsets)]
    spans = [None if extra else span for span, extra in zip(spans, added)]
    spans = _with_marks(text, spans)
    tokens = []
    for position, (id, piece, span, extra) in enumerate(zip(ids, pieces, spans, added)):
        shown = piece if span is None else text[slice(*span)]
        kind = "special" if extra else "template" if span is None else "text"
        tokens.append(Token(int(id), shown, span, kind, ("encoder",), position, None))
    return tuple(tokens)


def _span(text: str, piece: str, offset: Span) -> Span | None:
    start, end = offset
    part = text[start:end]
    if not part or (part.strip() and not piece.strip(JOINTS)):
        return None
    if part.strip():  # " red" stands for "red"; with the space, a part of its mass would belong to no word
        start, end = start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
    return start, end


def _with_marks(text: str, spans: Sequence[Span | None]) -> list[Span | None]:
    """The spans, each with the marks behind it that a normaliser joined with its last character (e and U+0301)."""
    covered = {i for span in spans if span for i in range(*span)}
    result = list(spans)
    for at in range(1, len(text)):
        if at in covered or at - 1 not in covered or not _joins(text[at - 1], text[at]):
            continue
        covered.add(at)
        result = [(span[0], at + 1) if span and span[1] == at else span for span in result]
    return result


def _joins(before: str, mark: str) -> bool:
    """Whether NFKC makes one character of the two, or `mark` is a mark on any letter."""
    normalize = unicodedata.normalize
    joined = normalize("NFKC", before + mark) != normalize("NFKC", before) + normalize("NFKC", mark)
    return joined or unicodedata.category(mark)[0] == "M"
