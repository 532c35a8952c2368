"""The parts of a prompt that share the attention between them.

A *unit* is a word, or other tokens: punctuation, <bos>, <eos>, padding. In each cell the maps of all units add up to the
attention to the text.
"""

from dataclasses import dataclass

import numpy as np

from toushi.probe.text.alignment import Token, Word, occurrences, same_unknown, token_shares


@dataclass(frozen=True)
class Unit:
    label: str
    kind: str  # word | token | text | template | special | pad
    span: tuple[int, int] | None = None
    occurrence: int = 0  # 1 and 2 for the first and second 猫; 0 if the word occurs once
    unknown: tuple[str, ...] = ()  # the words that share its map, because the vocabulary lacks them

    @property
    def name(self) -> str:
        """猫#2 for the second 猫, <bos> for that token, and (punctuation), (template) or (pads) for the other tokens."""
        if self.label:
            return self.label + (f"#{self.occurrence}" if self.occurrence else "")
        return {"text": "(punctuation)", "pad": "(pads)"}.get(self.kind, f"({self.kind})")


def units_of(tokens: list[Token], words: list[Word], by_token: bool = False) -> tuple[list[Unit], np.ndarray]:
    """The units in reading order, and float32 [unit, token]: the share of each token that belongs to each unit.

    `by_token` is for a run whose prompt is unknown: each text token is then a unit.
    """
    units, weights = [], []
    for word, number in zip(words, occurrences(words, words)):
        unknown = tuple(other.text for other in same_unknown(words, tokens, word.span))
        units.append(Unit(word.text, "word", word.span, number, unknown))
        weights.append(token_shares(tokens, word.span))
    left = 1 - np.sum(weights, axis=0, initial=0.0) if weights else np.ones(len(tokens))
    others: dict[Unit, np.ndarray] = {}
    for index, token in enumerate(tokens):
        kind = "text" if token.is_text else token.kind
        unit = Unit(token.text if kind == "special" else "", kind)
        if by_token and kind == "text":
            unit = Unit(f"{token.text}[{index}]", "token")
        others.setdefault(unit, np.zeros(len(tokens)))[index] = left[index]
    units += others
    weights += others.values()
    kept = [i for i, weight in enumerate(weights) if np.max(weight, initial=0) > 1e-6]
    return [units[i] for i in kept], np.array([weights[i] for i in kept], np.float32).reshape(-1, len(tokens))
