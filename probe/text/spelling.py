"""Which characters of a prompt the tokens of any tokenizer stand for, from the ids that were encoded.

This serves byte-level BPE (CLIP, Qwen, Mistral), SentencePiece (T5, Gemma, ChatGLM) and WordPiece (BERT). The bytes of
the tokens are followed through the bytes of the prompt, as the tokenizer normalises it. White space is left out on both
sides, because every tokenizer treats it in its own way; but 　, which is spelled in bytes, is kept. An unknown token
(<unk>) stands for the text between its neighbours.
"""

import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, decoders, pre_tokenizers

from toushi.probe.text.alignment import Span, Token

SPACES = b" \t\n\r\f\v"


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a tokenizer's vocabulary, and the ids that stand for no text."""

    piece: Callable[[int], str]
    normalise: Callable[[str], str]
    byte_level: bool
    added: frozenset[int]
    special: frozenset[int]
    unknown: int | None
    bos: int | None
    pad: int | None
    eos: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: object) -> "Vocabulary":
        """The vocabulary of a tokenizer of transformers, of diffusers' ChatGLM tokenizer, or of a processor's tokenizer."""
        named: Any = tokenizer  # its attributes are made at run time
        if not hasattr(named, "all_special_ids"):
            named = named.tokenizer
        # CLIP names <|endoftext|>, its end, as the unknown token, and never needs one.
        unknown = None if named.unk_token_id == named.eos_token_id else named.unk_token_id
        special = frozenset(named.all_special_ids) - {unknown}
        ends = named.bos_token_id, named.pad_token_id, named.eos_token_id
        if hasattr(getattr(named, "tokenizer", None), "sp_model"):
            pieces = named.tokenizer  # around a SentencePiece model
            special |= frozenset(pieces.index_special_tokens)
            return cls(
                pieces.convert_id_to_token, pieces.sp_model.normalize, False, frozenset(), special, unknown, *ends
            )
        fast = _backend_of(named)
        byte_level = isinstance(fast.decoder, decoders.ByteLevel)
        normalise = str if fast.normalizer is None else fast.normalizer.normalize_str
        added = frozenset(fast.get_added_tokens_decoder())
        return cls(lambda id: fast.id_to_token(id) or "", normalise, byte_level, added, special, unknown, *ends)

    def kinds(self, ids: Sequence[int], mask: Sequence[int] | None) -> list[str]:
        """text, special or pad for each id, as far as ids alone say. `mask` is 0 at padding."""
        pads = _padding(self, ids, mask)
        return ["pad" if pad else "special" if id in self.special else "text" for id, pad in zip(ids, pads)]

    def token_bytes(self, id: int, spaces: bool = False) -> bytes:
        """The bytes that the token stands for, without white space; with `spaces`, only without that of ASCII."""
        piece = self.piece(id)
        if id in self.added:
            return _strip_spaces(piece.encode())
        if self.byte_level:
            piece = piece.removesuffix("</w>")
            spelled = all(character in BYTES for character in piece)
            return _strip_spaces(bytes(BYTES[c] for c in piece) if spelled else piece.encode())
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return _strip_spaces(bytes.fromhex(piece[3:5]))
        if len(piece) > 2 and piece.startswith("##"):
            piece = piece[2:]
        return _strip_spaces(_strip_joints(piece, spaces).encode())

    def text_bytes(self, text: str, cleaning: "Cleaning") -> "TextBytes":
        """The bytes of the text as the tokenizer normalises it, each with the characters that it comes from."""
        result = []
        for start, end in _clusters(text):
            cluster = text[start:end].lower() if cleaning.lowers else text[start:end]
            if cleaning.drops_controls and all(
                unicodedata.category(character) in ("Cc", "Cf") for character in cluster
            ):
                continue
            cluster = self.normalise(cluster)
            if not self.byte_level:
                cluster = _strip_joints(cluster, cleaning.keeps_spaces)
            result += [(byte, (start, end)) for byte in cluster.encode() if byte not in SPACES]
        return result


class Cleaning(NamedTuple):
    """What was done to a prompt before the tokenizer's own normalisation."""

    drops_controls: bool = False  # tokenizers in plain Python do
    lowers: bool = False  # some pipelines do
    keeps_spaces: bool = False  # white space that is not ASCII


CLEANINGS = tuple(itertools.starmap(Cleaning, itertools.product((False, True), repeat=3)))
TextBytes = list[tuple[int, Span]]
_backends: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


def _backend_of(tokenizer: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` behind a tokenizer of transformers.

    A tokenizer in plain Python, as CLIP's is up to transformers 4, is converted once.
    """
    if (fast := getattr(tokenizer, "backend_tokenizer", None) or _backends.get(tokenizer)) is not None:
        return fast
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    fast = _backends[tokenizer] = convert_slow_tokenizer(tokenizer)
    fast.add_tokens([added for _, added in sorted(tokenizer.added_tokens_decoder.items())])
    return fast


def align_tokens(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str] = ("", ""),
) -> tuple[list[Token], int | None]:
    """A token for each id, and where the prompt was cut: its first character without a token, or None.

    `mask` is 0 at padding. `columns` has the place of each id among the denoiser's text keys. `template` is the text
    that the pipeline put before and after the prompt. Positions count from the first token that is no padding; padding
    on the left comes last. Raises SpellingError if these are not the ids of that prompt.
    """
    errors = []
    for cleaning in CLEANINGS:
        try:
            return _align(vocabulary, ids, mask, prompt, columns, encoders, template, cleaning)
        except SpellingError as error:
            errors.append(error)
    raise errors[0]


def _align(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
    cleaning: Cleaning,
) -> tuple[list[Token], int | None]:
    spaces = cleaning.keeps_spaces
    before, after = (vocabulary.text_bytes(text, Cleaning(keeps_spaces=spaces)) for text in template)
    own = vocabulary.text_bytes(prompt, cleaning)
    stream = bytes(byte for byte, _ in (*before, *own, *after))
    first, last = len(before), len(before) + len(own)
    pads = _padding(vocabulary, ids, mask)
    real = [index for index in range(len(ids)) if not pads[index]]
    lead = real[0] if real else 0
    breaks = _word_breaks(prompt, own, first)
    spelling = {ids[i]: vocabulary.token_bytes(ids[i], spaces) for i in real}
    places = dict(zip(real, _follow(vocabulary, [ids[i] for i in real], spelling, stream, breaks, bool(before))))

    tokens, reached = [], 0
    for index, (id, column) in enumerate(zip(ids, columns)):
        text, span, kind = vocabulary.piece(id), None, "pad"
        if not pads[index]:
            start, end = places[index]
            reached = max(reached, end)
            if max(start, first) < min(end, last):
                kind, touched = "text", [span for _, span in own[max(start, first) - first : min(end, last) - first]]
                span = (touched[0][0], touched[-1][1])
            elif start == end and id in vocabulary.special:
                kind = "special"
            elif start == end and (start > first or not template[0]) and (start < last or not template[1]):
                kind, span = "text", _gap(prompt, own, start - first)
            else:  # text of the template, or white space where it meets the prompt
                kind = "template"
        if kind != "text":
            text = text if id in vocabulary.special else vocabulary.token_bytes(id).decode(errors="replace")
        elif span is not None:
            text = prompt[slice(*span)]
        tokens.append(Token(id, text, span, kind, encoders, (index - lead) % len(ids), column))
    cut = own[max(reached - first, 0)][1][0] if reached < last else None
    return tokens, cut


class SpellingError(ValueError):
    """The tokens do not spell the prompt."""


# --- following the tokens through the text ---


def _follow(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    spelling: Mapping[int, bytes],
    stream: bytes,
    breaks: set[int],
    in_template: bool,
) -> list[tuple[int, int]]:
    """The start and end in the stream of each id. Special tokens stand for nothing, or for their own text."""
    ends: list[set[int]] = [{0}]  # where the tokens so far may end
    for index, id in enumerate(ids):
        after: set[int] = set()
        for start in ends[-1]:
            if id in vocabulary.special:
                after.add(start)
            if id == vocabulary.unknown:
                after |= set(_unknown_ends(start, len(stream), breaks))
            elif stream.startswith(spelling[id], start) and (index or id != vocabulary.bos or in_template):
                after.add(start + len(spelling[id]))
        if not after:
            raise SpellingError(f"token {index} ({vocabulary.piece(id)}) does not continue the text")
        ends.append(after)

    end = max(ends[-1])
    places = []
    for index in reversed(range(len(ids))):
        before, id = ends[index], ids[index]
        if id in vocabulary.special and end in before:
            start = end
        elif id == vocabulary.unknown:
            start = max(start for start in before if end in _unknown_ends(start, len(stream), breaks))
        else:
            start = end - len(spelling[id])
        places.append((start, end))
        end = start
    return places[::-1]


def _unknown_ends(start: int, length: int, breaks: set[int]) -> range:
    """Where an unknown token that begins at `start` may end. It never reaches across white space."""
    end = min((place for place in breaks if place > start), default=length)
    return range(min(start + 1, length), end + 1)


def _padding(vocabulary: Vocabulary, ids: Sequence[int], mask: Sequence[int] | None) -> list[bool]:
    """Which positions are padding: by the mask, else the pads at the end.

    Where the end token is also the pad token, the first one at the end is no padding.
    """
    if mask is not None:
        return [not real for real in mask]
    tail = len(ids)
    while tail and ids[tail - 1] == vocabulary.pad:
        tail -= 1
    if vocabulary.pad == vocabulary.eos:
        tail += 1
    return [index >= tail for index in range(len(ids))]


def _word_breaks(prompt: str, text_bytes: TextBytes, first: int) -> set[int]:
    """Places in the stream before which the prompt has white space."""
    return {
        first + index
        for index in range(1, len(text_bytes))
        if any(character.isspace() for character in prompt[text_bytes[index - 1][1][1] : text_bytes[index][1][0]])
    }


def _gap(prompt: str, text_bytes: TextBytes, place: int) -> Span | None:
    """The characters, white space, before this place of the prompt's own bytes."""
    start = text_bytes[place - 1][1][1] if 0 < place <= len(text_bytes) else 0
    end = text_bytes[place][1][0] if place < len(text_bytes) else len(prompt)
    return (start, end) if start < end else None


# --- characters and bytes ---


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTES = _byte_alphabet()
assert set(BYTES) == set(pre_tokenizers.ByteLevel.alphabet())


def _clusters(text: str) -> list[Span]:
    """The spans of characters with the marks that follow them, which a normaliser may join."""
    starts = [
        index
        for index, character in enumerate(text)
        if index == 0 or not (unicodedata.combining(character) or 0x1160 <= ord(character) <= 0x11FF)
    ]
    return list(zip(starts, [*starts[1:], len(text)]))


def _strip_joints(text: str, spaces: bool) -> str:
    """The text without SentencePiece's ▁, and without white space unless `spaces`."""
    return "".join(character for character in text if character != "▁" and (spaces or not character.isspace()))


def _strip_spaces(spelling: bytes) -> bytes:
    return spelling.translate(None, SPACES)
