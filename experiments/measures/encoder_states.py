"""What the experiments ask of an encoder: the trained one and its untrained twin, states of many words, its files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import Encoder, folder_of, open_encoder
from toushi.probe.text.alignment import Span, token_shares

WEIGHTS = ("trained", "random")  # the encoder itself, and the same design before it has learnt anything
AT_ONCE = 64  # texts whose states of every token are in memory together


@lru_cache(maxsize=2)
def opened(which: str, weights: str = "trained", seed: int = 0) -> Encoder:
    """On the CPU, where every job of a run comes to the same bits, with the threads that the run has."""
    return replace(open_encoder(which, "cpu", untrained=seed if weights == "random" else None), threads=None)


def weight_files(which: str) -> list[Path]:
    folder = folder_of(which)
    home = folder / "text_encoder" if (folder / "model_index.json").is_file() else folder
    found = sorted(home.glob("*.safetensors"))
    if not found:
        raise ToushiError(f"{home} holds no weights: expected a .safetensors file")
    return found


def knows_only_scenes(which: str) -> bool:
    """Whether it is one of ours, trained on the scene world: other words it has never read."""
    config = folder_of(which) / "config.json"
    return config.is_file() and '"unet"' in config.read_text()


def data_sets(which: str, asked: str, ordinary: str) -> list[str]:
    """What to ask an encoder about: `scenes`, `ordinary` sentences, or both; the verdict rests on the first.

    `asked` is one of the two, `both`, or `auto`: scenes for ours, both for the others.
    """
    if asked == "auto":
        asked = "scenes" if knows_only_scenes(which) else "both"
    return [ordinary, "scenes"] if asked == "both" else [asked]


def called(which: str) -> str:
    """A name for figures and sentences."""
    return which if "/" not in which else Path(which).name


def bags_at(encoder: Encoder, texts: Sequence[str], spans: Sequence[Span]) -> np.ndarray:
    """fp32 [1, place, feature]: what stands around the characters `spans`, in no order and read by no layer: the mean
    of the embeddings of all other tokens of text."""
    found: list[np.ndarray] = []
    for start in range(0, len(texts), AT_ONCE):
        for reading in encode_layers(encoder, texts[start : start + AT_ONCE], attention=False):
            own = token_shares(reading.tokens, spans[len(found)]) > 0
            text = np.array([token.span is not None and token.span[0] < token.span[1] for token in reading.tokens])
            found.append(reading.states.values[0, text & ~own].mean(0))
    return np.stack(found)[None]


def states_at(encoder: Encoder, texts: Sequence[str], spans: Sequence[Span | None]) -> np.ndarray:
    """fp32 [layer, place, feature]: of each text the state of the characters `spans`, or of its last token if None.

    A text that is named several times is read once.
    """
    asked: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        asked.setdefault(text, []).append(place)
    different, found = list(asked), {}
    for start in range(0, len(different), AT_ONCE):
        for reading in encode_layers(encoder, different[start : start + AT_ONCE], attention=False):
            for place in asked[reading.text]:
                span = spans[place]
                last = span is None
                found[place] = reading.states.values[:, -1] if last else reading.word_states([span]).values[:, 0]
    return np.stack([found[place] for place in range(len(texts))], axis=1)
