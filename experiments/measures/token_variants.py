"""One prompt in many variants: attention to some of its tokens removed, their states replaced, or words inserted.

All variants of a prompt are drawn in one batch, from one noise. The attention is that of all cross-attention, at every step,
layer and head; what remains is divided by its sum. States are the output of the text encoder's last layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toushi.experiments.scene_world.captions import Caption
from toushi.probe.attribution.word_scores import without
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.text.alignment import Token, Word, segment
from toushi.probe.text.bpe import Tokenizer

TEXT_CATEGORIES = ("object", "colour", "relation", "place", "particle", "punctuation")
CATEGORIES = (*TEXT_CATEGORIES, "bos", "eos", "pad")
ROLES = {"object": "object", "colour": "colour", "position": "relation", "place": "place"}
PUNCTUATION = "，。、：；,.:; "
FILLERS = ("的", "请画", "一下", " the ")
NEUTRAL = "画面"  # "the picture": it asks for nothing


@dataclass(frozen=True)
class Variant:
    """A prompt, the positions of its tokens that nobody attends to, and of those whose state is replaced."""

    operation: str  # clean | zero | replace | keep | without | filler
    category: str
    prompt: str
    zero: tuple[int, ...] = ()
    replace: tuple[int, ...] = ()


class DrawnVariants(NamedTuple):
    """A picture of each variant, and the share of attention [position] that each token of the first one gets."""

    pictures: list[Image.Image]
    attention: np.ndarray


def token_categories(caption: Caption, tokens: Sequence[Token]) -> list[str | None]:
    """The category of each token; None for words of size, time, style and context. A token that lies in several parts
    belongs to the one with most of its characters."""
    return [_category(caption, token) for token in tokens]


def _category(caption: Caption, token: Token) -> str | None:
    if token.span is None:
        return token.text.strip("<>")
    start, end = token.span
    shared = [(min(end, part.end) - max(start, part.start), part.role) for part in caption.parts]
    length, role = max(shared, default=(0, ""))
    if length > 0:
        return ROLES.get(role)
    return "punctuation" if all(letter in PUNCTUATION for letter in caption.text[start:end]) else "particle"


def token_variants(caption: Caption, tokenizer: Tokenizer, seed: int) -> list[Variant]:
    """The untouched prompt, then each operation on each category that the prompt has, controls and fillers.

    Of category `random` are as many text tokens as the objects have, drawn by `seed` among the other text tokens.
    """
    tokens, text = tokenizer.encode(caption.text).tokens, caption.text
    categories = token_categories(caption, tokens)
    positions = {name: tuple(t.position for t, own in zip(tokens, categories) if own == name) for name in CATEGORIES}
    positions["pad"] = tuple(range(len(tokens), tokenizer.length))
    random = np.random.default_rng([seed, 5])
    others = [token.position for token, own in zip(tokens, categories) if token.span and own != "object"]
    drawn = random.permutation(others)[: len(positions["object"])]
    positions["random"] = tuple(sorted(drawn.tolist()))
    variants = [Variant("clean", "none", text)]
    for category, chosen in positions.items():
        if not chosen:
            continue
        rest = tuple(token.position for token in tokens if token.position not in chosen)
        variants.append(Variant("zero", category, text, zero=chosen))
        if category != "pad":  # nobody can attend to a pad, so neither its state nor it alone can matter
            variants.append(Variant("replace", category, text, replace=chosen))
            variants.append(Variant("keep", category, text, zero=rest))
    objects = [Word(text[p.start : p.end], p.start, p.end) for p in caption.parts if p.role == "object"]
    variants.append(Variant("without", "object", without(text, objects, [False] * len(objects))))
    gaps = [0, *(word.end for word in segment(text))]
    variants += [Variant("filler", word.strip(), insert(text, random.choice(gaps), word)) for word in FILLERS]
    return variants


def insert(text: str, place: int, filler: str) -> str:
    return text[:place] + filler + text[place:]


def draw_variants(
    model: MiniUNet, variants: Sequence[Variant], seed: int, steps: int, guidance: float
) -> DrawnVariants:
    """The pictures of all variants from the noise of `seed`, in one batch."""
    encodings = [model.tokenizer.encode(variant.prompt) for variant in variants]
    length = max(len(encoding.ids) for encoding in encodings)
    factor = torch.ones(len(variants), 1, length, 1)
    for row, variant in enumerate(variants):
        factor[row, 0, [position for position in variant.zero if position < length]] = 0
    shares: list[Tensor] = []

    def scale(probabilities: Tensor) -> Tensor:
        """Of all rows [row, head, column, cell]; those of the prompts come last, after those of the empty prompt."""
        changed = probabilities.clone()
        changed[-len(variants) :] *= factor[:, :, : changed.shape[2]]
        shares.append(probabilities[-len(variants)].mean((0, 2)))
        return changed

    last = f"encoder.layers.{len(model.encoder.layers) - 1}"
    neutral = neutral_states(model, last)

    def substitute(states: Tensor) -> Tensor:
        if states.shape[:2] != (len(variants), length):  # the empty prompt, which guidance needs
            return states
        for row, (variant, encoding) in enumerate(zip(variants, encodings)):
            for position in variant.replace:
                name = encoding.tokens[position].text if encoding.tokens[position].span is None else "text"
                states[row, position] = neutral[name]
        return states

    changes = (
        Edit("unet.*cross_attention", "function", function=scale, renormalise=True),
        Edit(last, "function", function=substitute),
    )
    with edit(model, *changes):
        pictures = model.sample(
            [variant.prompt for variant in variants], seed=[seed] * len(variants), steps=steps, guidance=guidance
        )
    tokens = len(encodings[0].ids)
    return DrawnVariants(pictures, torch.stack([share[:tokens] for share in shares]).mean(0).numpy())


def neutral_states(model: MiniUNet, layer: str) -> dict[str, Tensor]:
    """The states [feature] of <bos>, <eos> and the last token of the text of a prompt that asks for nothing."""
    states: list[Tensor] = []

    def note(state: Tensor) -> Tensor:
        states.append(state.clone())
        return state

    with edit(model, layer, note):
        model.encode_prompt([NEUTRAL], None)
    tokens = model.tokenizer.encode(NEUTRAL).tokens
    return {"text" if token.span else token.text: state for token, state in zip(tokens, states[0][0])}
