"""Which characters of a prompt the tokens of somebody else's tokenizer stand for, from the ids that were encoded.

Byte-level BPE (CLIP, Qwen, Mistral), SentencePiece (T5, Gemma, ChatGLM) and WordPiece (BERT) alike: what the tokens spell is followed,
byte by byte, through the prompt as the tokenizer normalises it. White space counts for nothing on either side, since
every tokenizer treats it in a way of its own, unless it is spelled out in bytes, as 　 is; a token that the vocabulary
cannot spell (<unk>) stands for whatever lies between its neighbours.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, decoders, pre_tokenizers

from toushi.probe.text.alignment import Span, Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

SPACES = b" \t\n\r\f\v"


@dataclass(frozen=True)
class Vocabulary:
    """What is known of a tokenizer: its own pieces, and which ids are not to be read as text."""

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
    def of(cls, tokenizer: "PreTrainedTokenizerBase | ProcessorMixin") -> "Vocabulary":
        """Of a tokenizer of transformers, of diffusers' ChatGLM one, or of a processor's."""
        if not hasattr(tokenizer, "all_special_ids"):
            tokenizer = tokenizer.tokenizer
        unknown = tokenizer.unk_token_id
        # CLIP names <|endoftext|>, its end, as the unknown token, and never needs one.
        unknown = None if unknown == tokenizer.eos_token_id else unknown
        special = frozenset(tokenizer.all_special_ids) - {unknown}
        ends = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
        if hasattr(getattr(tokenizer, "tokenizer", None), "sp_model"):
            pieces = tokenizer.tokenizer  # around a SentencePiece model
            special |= frozenset(pieces.index_special_tokens)
            return cls(
                pieces.convert_id_to_token, pieces.sp_model.normalize, False, frozenset(), special, unknown, *ends
            )
        fast = backend_of(tokenizer)
        byte_level = isinstance(fast.decoder, decoders.ByteLevel)
        normalise = str if fast.normalizer is None else fast.normalizer.normalize_str
        added = frozenset(fast.get_added_tokens_decoder())
        return cls(lambda id: fast.id_to_token(id) or "", normalise, byte_level, added, special, unknown, *ends)

    def kinds(self, ids: Sequence[int], mask: Sequence[int] | None) -> list[str]:
        """text, special or pad, as far as ids alone tell."""
        pads = _padding(self, ids, mask)
        return ["pad" if pad else "special" if id in self.special else "text" for id, pad in zip(ids, pads)]

    def spelled(self, id: int, spaces: bool = False) -> bytes:
        """The bytes that the token stands for, without white space; with `spaces` only without that of ASCII."""
        piece = self.piece(id)
        if id in self.added:
            return _without_spaces(piece.encode())
        if self.byte_level:
            piece = piece.removesuffix("</w>")
            known = all(character in BYTES for character in piece)
            return _without_spaces(bytes(BYTES[c] for c in piece) if known else piece.encode())
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return _without_spaces(bytes.fromhex(piece[3:5]))
        if len(piece) > 2 and piece.startswith("##"):
            piece = piece[2:]
        return _without_spaces(_bare(piece, spaces).encode())

    def normalised(self, text: str, lower: bool = False, spaces: bool = False) -> list[tuple[int, Span]]:
        """The bytes of the text as the tokenizer reads it, each with the characters that it comes from."""
        found = []
        for start, end in _clusters(text):
            cluster = text[start:end].lower() if lower else text[start:end]
            cluster = self.normalise(cluster)
            if not self.byte_level:
                cluster = _bare(cluster, spaces)
            found += [(byte, (start, end)) for byte in cluster.encode() if byte not in SPACES]
        return found


_backends: "WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer]" = WeakKeyDictionary()


def backend_of(tokenizer: "PreTrainedTokenizerBase") -> Tokenizer:
    """The `tokenizers.Tokenizer` behind a tokenizer of transformers. One in plain Python, as CLIP's is up to
    transformers 4, is converted once."""
    if (fast := getattr(tokenizer, "backend_tokenizer", None) or _backends.get(tokenizer)) is not None:
        return fast
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    fast = _backends[tokenizer] = convert_slow_tokenizer(tokenizer)
    fast.add_tokens([added for _, added in sorted(tokenizer.added_tokens_decoder.items())])
    return fast


def spelled_out(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str] = ("", ""),
) -> tuple[list[Token], int | None]:
    """A token for each id, and where the prompt was cut: its first character that no token stands for, or None.

    `mask` is 0 at padding; `template` is what the pipeline put before and after the prompt; `columns` says for each
    id where it stands among the denoiser's text keys. Raises Misspelled if these are not the ids of that prompt.
    Positions count from the first token that is no padding; padding on the left comes last.
    """
    # A pipeline may lower the case of the prompt of its own accord.
    ways = [(lower, spaces) for lower in (False, True) for spaces in (False, True)]
    for way in ways:
        try:
            return _spelled_out(vocabulary, ids, mask, prompt, columns, encoders, template, *way)
        except Misspelled as error:
            if way == ways[0]:
                first = error
    raise first


def _spelled_out(vocabulary, ids, mask, prompt, columns, encoders, template, lower: bool, spaces: bool):
    before, after = (vocabulary.normalised(text, False, spaces) for text in template)
    own = vocabulary.normalised(prompt, lower, spaces)
    stream = bytes(byte for byte, _ in (*before, *own, *after))
    first, last = len(before), len(before) + len(own)
    pads = _padding(vocabulary, ids, mask)
    real = [index for index in range(len(ids)) if not pads[index]]
    lead = real[0] if real else 0
    breaks = _breaks(prompt, own, first)
    spelled = {ids[i]: vocabulary.spelled(ids[i], spaces) for i in real}
    places = dict(zip(real, _follow(vocabulary, [ids[i] for i in real], spelled, stream, breaks, bool(before))))

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
            else:  # the template's own, or white space where it meets the prompt
                kind = "template"
        if kind != "text":
            text = text if id in vocabulary.special else vocabulary.spelled(id).decode(errors="replace")
        elif span is not None:
            text = prompt[slice(*span)]
        tokens.append(Token(id, text, span, kind, encoders, (index - lead) % len(ids), column))
    cut = own[max(reached - first, 0)][1][0] if reached < last else None
    return tokens, cut


class Misspelled(ValueError):
    """The tokens do not spell the prompt."""


# --- following the tokens through the text ---


def _follow(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    spelled: Mapping[int, bytes],
    stream: bytes,
    breaks: set[int],
    in_template: bool,
) -> list[tuple[int, int]]:
    """For each id the stretch of the stream that it stands for. Special tokens stand for none, or for themselves."""
    reach: list[set[int]] = [{0}]
    for index, id in enumerate(ids):
        bare = id in vocabulary.special
        after: set[int] = set()
        for at in reach[-1]:
            if bare:
                after.add(at)
            if id == vocabulary.unknown:
                after |= set(_unknown_ends(at, len(stream), breaks))
            elif stream.startswith(spelled[id], at) and not (index == 0 and id == vocabulary.bos and not in_template):
                after.add(at + len(spelled[id]))
        if not after:
            raise Misspelled(f"token {index} ({vocabulary.piece(id)}) is not what comes next in the text")
        reach.append(after)

    at = max(reach[-1])
    places = []
    for index in reversed(range(len(ids))):
        before, id = reach[index], ids[index]
        if id in vocabulary.special and at in before:
            start = at
        elif id == vocabulary.unknown:
            start = max(place for place in before if at in _unknown_ends(place, len(stream), breaks))
        else:
            start = at - len(spelled[id])
        places.append((start, at))
        at = start
    return places[::-1]


def _unknown_ends(at: int, length: int, breaks: set[int]) -> range:
    """Where an unknown token that begins here may end: it never reaches across white space."""
    end = min((place for place in breaks if place > at), default=length)
    return range(min(at + 1, length), end + 1)


def _padding(vocabulary: Vocabulary, ids: Sequence[int], mask: Sequence[int] | None) -> list[bool]:
    """Which positions are filling: by the mask, else by the tail of pads. Where the end token fills, too, the first
    of the tail is the end itself."""
    if mask is not None:
        return [not real for real in mask]
    tail = len(ids)
    while tail and ids[tail - 1] == vocabulary.pad:
        tail -= 1
    if vocabulary.pad == vocabulary.eos:
        tail += 1
    return [index >= tail for index in range(len(ids))]


def _breaks(prompt: str, own: list[tuple[int, Span]], first: int) -> set[int]:
    """Places in the stream before which the prompt has white space."""
    return {
        first + index
        for index in range(1, len(own))
        if any(character.isspace() for character in prompt[own[index - 1][1][1] : own[index][1][0]])
    }


def _gap(prompt: str, own: list[tuple[int, Span]], at: int) -> Span | None:
    """The white space before this place of the prompt's own bytes."""
    start = own[at - 1][1][1] if 0 < at <= len(own) else 0
    end = own[at][1][0] if at < len(own) else len(prompt)
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
    """Characters with the marks that follow them: what a normaliser may join."""
    starts = [
        index
        for index, character in enumerate(text)
        if index == 0 or not (unicodedata.combining(character) or 0x1160 <= ord(character) <= 0x11FF)
    ]
    return list(zip(starts, [*starts[1:], len(text)]))


def _bare(text: str, spaces: bool) -> str:
    """Without SentencePiece's ▁, and unless `spaces` without white space."""
    return "".join(character for character in text if character != "▁" and (spaces or not character.isspace()))


def _without_spaces(spelled: bytes) -> bytes:
    return spelled.translate(None, SPACES)
