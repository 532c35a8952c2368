"""Which characters of a prompt the tokens of any tokenizer stand for, from the ids that were encoded.

This serves byte-level BPE (CLIP, Qwen, Mistral), SentencePiece (T5, Gemma, ChatGLM) and WordPiece (BERT). The bytes of
the tokens are followed through the bytes of the prompt, as the tokenizer normalises it. White space is left out on both
sides, because every tokenizer treats it in its own way; but 　, which is spelled in bytes, is kept. An unknown token
(<unk>) stands for text of which the tokenizer makes one. A token that cannot be followed has no span.
"""

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, decoders, pre_tokenizers

from toushi.probe.text.alignment import Span, Token
from toushi.probe.text.byte_alignment import Piece, Place, align_bytes

SPACES = b" \t\n\r\f\v"
IMAGE = "<|image_pad|>"  # in Qwen-VL's sequences the place of a part of a picture


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
    image: int | None = None  # in place of a part of a picture
    encode: Callable[[str], tuple[list[int], list[Span]]] | None = None  # ids of a text, and the characters of each
    has_joints: bool = True  # whether ▁ stands for white space, as in SentencePiece

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

        def encode(text: str) -> tuple[list[int], list[Span]]:
            encoding = fast.encode(text, add_special_tokens=False)  # cut and padded as in the latest call
            parts = [encoding, *encoding.overflowing]
            rows = [row for part in parts for row in zip(part.ids, part.offsets, part.attention_mask) if row[2]]
            return [id for id, _, _ in rows], [span for _, span, _ in rows]

        piece = lambda id: fast.id_to_token(id) or ""  # noqa: E731
        has_joints = not isinstance(fast.decoder, decoders.WordPiece)
        image = fast.token_to_id(IMAGE)
        return cls(piece, normalise, byte_level, added, special, unknown, *ends, image, encode, has_joints)

    def kinds(self, ids: Sequence[int], mask: Sequence[int] | None) -> list[str]:
        """text, special, image or pad for each id, as far as ids alone say. `mask` is 0 at padding."""
        kinds = dict.fromkeys(self.special, "special") | {self.image: "image"}
        return ["pad" if pad else kinds.get(id, "text") for id, pad in zip(ids, _padding(self, ids, mask))]

    def token_bytes(self, id: int, spaces: bool = False) -> bytes:
        """The bytes that the token stands for, without white space; with `spaces`, only without that of ASCII."""
        piece = self.piece(id)
        if id in self.added:
            return _strip_spaces((piece if self.byte_level else self._strip_joints(piece, spaces)).encode())
        if self.byte_level:
            piece = piece.removesuffix("</w>")
            spelled = all(character in BYTES for character in piece)
            return _strip_spaces(bytes(BYTES[c] for c in piece) if spelled else piece.encode())
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return _strip_spaces(bytes.fromhex(piece[3:5]))
        if len(piece) > 2 and piece.startswith("##"):
            piece = piece[2:]
        return _strip_spaces(self._strip_joints(piece, spaces).encode())

    def _strip_joints(self, text: str, spaces: bool) -> str:
        """The text without joints, and without white space unless `spaces`."""
        joint = "▁" if self.has_joints else ""
        return "".join(character for character in text if character != joint and (spaces or not character.isspace()))

    def text_bytes(self, text: str, cleaning: "Cleaning") -> "TextBytes":
        """The bytes of the text as the tokenizer normalises it, each with the characters that it comes from."""
        result, lowered = [], _lowered(text) if cleaning.lowers else text
        for start, end in _clusters(text):
            cluster = "".join(lowered[start:end])
            if cleaning.drops_controls and all(
                unicodedata.category(character) in ("Cc", "Cf") for character in cluster
            ):
                continue
            cluster = self.normalise(cluster)
            if not self.byte_level:
                cluster = self._strip_joints(cluster, cleaning.keeps_spaces)
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


class SpellingError(ValueError):
    """The tokens spell another text than the prompt."""


class Alignment(NamedTuple):
    """What the tokens of a prompt stand for."""

    tokens: list[Token]
    cut: int | None  # the first character behind the last token, if the prompt was too long
    changed: str  # characters of the prompt, before the cut, that no token spells: a pipeline replaced or removed them


def align_tokens(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str] = ("", ""),
) -> Alignment:
    """A token for each id, with its span where it can be followed. A gap does not shift what is behind it.

    `mask` is 0 at padding. `columns` has the place of each id among the denoiser's text keys. `template` is the text
    that the pipeline put before and after the prompt. Positions count from the first token that is no padding; padding
    on the left comes last. Raises SpellingError if most of the ids spell another text.
    """
    pads = _padding(vocabulary, ids, mask)
    real = [index for index in range(len(ids)) if not pads[index]]
    read = [index for index in real if ids[index] != vocabulary.image]
    text, followed = _follow(vocabulary, [ids[index] for index in read], prompt, template)
    places, lead = dict(zip(read, followed)), real[0] if real else 0
    tokens, reached = [], 0
    for index, (id, column) in enumerate(zip(ids, columns)):
        kind, span = "pad", None
        if index in places:
            place = places[index]
            kind, span = text.label(place, reached, id in vocabulary.special)
            reached = max(reached, place[1] if place else 0)
        elif not pads[index]:
            kind = "image"
        if kind == "text" and id == vocabulary.unknown:
            kind = "unknown"
        shown = vocabulary.piece(id)
        if span is not None:
            shown = prompt[slice(*span)]
        elif id not in vocabulary.special and kind in ("template", "pad"):
            shown = vocabulary.token_bytes(id).decode(errors="replace")
        tokens.append(Token(id, shown, span, kind, encoders, (index - lead) % len(ids), column))
    cut = text.character_at(reached)
    if any(pads):  # only a prompt that is not too long is padded
        cut = None
    covered = {index for token in tokens if token.span for index in range(*token.span)}
    spelled = [index for index in text.spelled_characters() if cut is None or index < cut]
    return Alignment(tokens, cut, "".join(prompt[index] for index in spelled if index not in covered))


# --- following the tokens through the text ---


class TemplatedText:
    """The bytes of a prompt in its template, as a tokenizer normalises them, and the characters that they come from."""

    def __init__(self, vocabulary: Vocabulary, prompt: str, template: tuple[str, str], cleaning: Cleaning):
        self.prompt, self.has_template = prompt, tuple(map(bool, template))
        plain = Cleaning(keeps_spaces=cleaning.keeps_spaces)
        before, after = (vocabulary.text_bytes(text, plain) for text in template)
        self.own = vocabulary.text_bytes(prompt, cleaning)
        self.first, self.last = len(before), len(before) + len(self.own)
        self.stream = bytes(byte for byte, _ in (*before, *self.own, *after))
        parts = [*template[0], *(_lowered(prompt) if cleaning.lowers else prompt), *template[1]]
        self.encoded = "".join(parts)  # what the tokenizer got
        origins = [index for index, part in enumerate(parts) for _ in part]  # its characters in the text before that
        self.origins = [*origins, len(parts)]
        shift = len(template[0])  # from characters of the prompt to those of the text
        entries = [(before, 0), (self.own, shift), (after, shift + len(prompt))]
        self.characters = [(start + by, end + by) for part, by in entries for _, (start, end) in part]

    def places_of(self, span: Span) -> list[Place]:
        """Where the bytes of these characters of the encoded text may be: one place, or parts of a letter with its marks."""
        first, last = self.origins[span[0]], self.origins[span[1]]
        inside = [place for place, (start, end) in enumerate(self.characters) if start < last and first < end]
        if not inside:
            return []
        starts, ends = [inside[0]], [inside[-1] + 1]
        if self.characters[inside[0]][0] < first:
            starts = self._boundaries(inside[0])
        if last < self.characters[inside[-1]][1]:
            ends = self._boundaries(inside[-1])
        return [(start, end) for start in starts for end in ends if start < end]

    def _boundaries(self, place: int) -> list[int]:
        """Where characters begin or end among the bytes of one letter and its marks."""
        own = [other for other, span in enumerate(self.characters) if span == self.characters[place]]
        return [*(other for other in own if self.stream[other] & 0xC0 != 0x80), own[-1] + 1]

    def label(self, place: Place | None, reached: int, special: bool) -> tuple[str, Span | None]:
        """Kind and span of a token at this place; None: it was not followed. `reached`: where the earlier ones end."""
        before, after = self.has_template
        first, last = self.first, self.last
        if place is None:
            outside = (before and reached < first) or (after and reached > last)
            return "special" if special else "template" if outside else "text", None
        start, end = place
        if max(start, first) < min(end, last):
            touched = self.own[max(start, first) - first : min(end, last) - first]
            return "text", (touched[0][1][0], touched[-1][1][1])
        if start == end and special:
            return "special", None
        if start == end and (start > first or not before) and (start < last or not after):
            return "text", self._space_at(start - first)
        return "template", None  # text of the template, or white space where it meets the prompt

    def _space_at(self, place: int) -> Span | None:
        """The white space before this place of the prompt's own bytes."""
        start = self.own[place - 1][1][1] if 0 < place <= len(self.own) else 0
        end = self.own[place][1][0] if place < len(self.own) else len(self.prompt)
        return (start, end) if start < end else None

    def character_at(self, place: int) -> int | None:
        """The first character of the prompt behind this place of the stream; None if there is none."""
        return self.own[max(place - self.first, 0)][1][0] if place < self.last else None

    def spelled_characters(self) -> list[int]:
        """The characters of the prompt that a tokenizer spells, in order: no white space."""
        return sorted({index for _, span in self.own for index in range(*span)})


def _follow(
    vocabulary: Vocabulary, ids: Sequence[int], prompt: str, template: tuple[str, str]
) -> tuple[TemplatedText, list[Place | None]]:
    """The place of each token in the text, and that text, cleaned in the way in which most can be followed."""
    best: tuple[int, TemplatedText, list[Place | None]] | None = None
    for cleaning in CLEANINGS:
        text = TemplatedText(vocabulary, prompt, template, cleaning)
        cost, places = _places(vocabulary, ids, text, cleaning.keeps_spaces)
        if best is None or cost < best[0]:
            best = cost, text, places
        if not cost:
            break
    assert best is not None  # there are cleanings
    _, text, places = best
    lost = [index for index, place in enumerate(places) if place is None and vocabulary.token_bytes(ids[index])]
    followed = [place for place in places if place and text.first < place[1] and place[0] < text.last]
    if sum(len(vocabulary.token_bytes(ids[index])) for index in lost) > sum(end - start for start, end in followed):
        raise SpellingError(f"token {lost[0]} ({vocabulary.piece(ids[lost[0]])}) does not continue the text")
    return text, places


def _places(
    vocabulary: Vocabulary, ids: Sequence[int], text: TemplatedText, spaces: bool
) -> tuple[int, list[Place | None]]:
    """What it costs to follow the tokens, and their places in the text."""
    known_ids, spans = ([], []) if vocabulary.encode is None else vocabulary.encode(text.encoded)
    unknown = [
        place for id, span in zip(known_ids, spans) if id == vocabulary.unknown for place in text.places_of(span)
    ]
    own = _own_tokens(vocabulary, ids, known_ids)
    owners = _owners(vocabulary, ids)
    pieces = {}
    for index in dict.fromkeys(owners):
        id = ids[index]
        special, place = id in vocabulary.special, None if own is None else index - own.start
        if own is not None and index not in own:
            pieces[index] = Piece(b"")  # the tokenizer put it there
        elif place is not None and (special or id == vocabulary.unknown):
            pieces[index] = Piece(b"", places=text.places_of(spans[place]))
        elif id == vocabulary.unknown:
            pieces[index] = Piece(b"", places=unknown)
        elif not index and id == vocabulary.bos and not text.has_template[0]:
            pieces[index] = Piece(b"")
        else:
            pieces[index] = Piece(vocabulary.token_bytes(id, spaces), special)
    aligned, cost = align_bytes(list(pieces.values()), text.stream)
    places = dict(zip(pieces, aligned))
    return cost, [places[owner] for owner in owners]


def _own_tokens(vocabulary: Vocabulary, ids: Sequence[int], known_ids: Sequence[int]) -> range | None:
    """Which of the ids the text has, if they are the first of `known_ids`, those that the tokenizer makes of it; else None.

    Those before and after are special tokens that the tokenizer put there.
    """
    best = None
    for lead in range(len(ids) + 1):
        rest = ids[lead:]
        same = next((n for n, (a, b) in enumerate(zip(rest, known_ids)) if a != b), min(len(rest), len(known_ids)))
        if all(id in vocabulary.special for id in rest[same:]) and (best is None or same >= len(best)):
            best = range(lead, lead + same)
        if lead == len(ids) or ids[lead] not in vocabulary.special:
            break
    return best


def _owners(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """The token for which each one stands: itself, but <toy> for <toy>_1, with which diffusers continues it."""
    owners: list[int] = []
    for index, id in enumerate(ids):
        owner = owners[-1] if owners else index
        part = f"{vocabulary.piece(ids[owner])}_{index - owner}"
        owners.append(owner if id in vocabulary.added and vocabulary.piece(id) == part else index)
    return owners


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


def _lowered(text: str) -> list[str]:
    """Each character in lower case. That of Σ depends on its word."""
    lengths = [len(character.lower()) for character in text]
    ends = [0, *itertools.accumulate(lengths)]
    lowered = text.lower()
    return [lowered[start:end] for start, end in itertools.pairwise(ends)]


def _strip_spaces(spelling: bytes) -> bytes:
    return spelling.translate(None, SPACES)
