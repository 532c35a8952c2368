"""What the studies need of an encoder: trained or with random weights, states of many words, its files, its label."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import Encoder, UnknownEncoder, encoder_folder, open_encoder
from toushi.probe.text.alignment import Span, token_shares

WEIGHTS = ("trained", "random")  # the encoder itself, and the same design before training
BATCH = 64  # texts whose states of every token are in memory together


@lru_cache(maxsize=2)
def load_cpu_encoder(name: str, weights: str = "trained", seed: int = 0) -> Encoder:
    """The encoder on the CPU, where every job of a study gets the same bits, with the threads of the job's process."""
    return replace(open_encoder(name, "cpu", untrained=seed if weights == "random" else None), threads=None)


@lru_cache
def locate_encoder(name: str) -> Path:
    """Where the files of a shipped model, a folder, or a hub id are; those of a hub id are downloaded first."""
    try:
        return encoder_folder(name)
    except UnknownEncoder as error:
        raise UnknownEncoder(f"{error}. If you have its files, name their folder: --set encoder=FOLDER") from None


def weight_files(name: str) -> list[Path]:
    folder = locate_encoder(name)
    home = folder / "text_encoder" if (folder / "model_index.json").is_file() else folder
    files = sorted(home.glob("*.safetensors"))
    if not files:
        raise ToushiError(f"{home} holds no weights: expected a .safetensors file")
    return files


def knows_only_scenes(name: str) -> bool:
    """Whether it is one of our own models, which have read the words of the scene world only."""
    config = locate_encoder(name) / "config.json"
    return config.is_file() and '"unet"' in config.read_text()


def data_sets(name: str, data: str, ordinary: str) -> list[str]:
    """Which data an encoder is tested on: `scenes`, `ordinary` sentences, or both. The verdict rests on the first.

    `data` is one of the two, `both`, or `auto`: scenes for our own encoders, both for others.
    """
    if data == "auto":
        data = "scenes" if knows_only_scenes(name) else "both"
    return [ordinary, "scenes"] if data == "both" else [data]


def encoder_label(name: str) -> str:
    """The model's name in figures and sentences, wherever its folder lies."""
    path = str(Path(name).resolve()) if Path(name).is_dir() else name
    cached = re.search(r"models--[^/\\]+--([^/\\]+)[/\\]snapshots[/\\]", path)  # a cache of the hub
    return cached[1] if cached else Path(path).name


def bags_at(encoder: Encoder, texts: Sequence[str], spans: Sequence[Span]) -> np.ndarray:
    """fp32 [1, place, feature]: the bag of words around the characters `spans`: the mean embedding of all other tokens
    of the text."""
    found: list[np.ndarray] = []
    for start in range(0, len(texts), BATCH):
        for reading in encode_layers(encoder, texts[start : start + BATCH], attention=False):
            own = token_shares(reading.tokens, spans[len(found)]) > 0
            text = np.array([token.span is not None and token.span[0] < token.span[1] for token in reading.tokens])
            found.append(reading.states.values[0, text & ~own].mean(0))
    return np.stack(found)[None]


def states_at(encoder: Encoder, texts: Sequence[str], spans: Sequence[Span | None]) -> np.ndarray:
    """fp32 [layer, place, feature]: the state of the characters `spans` of each text, or of its last token if None.

    A text that occurs several times is encoded once.
    """
    asked: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        asked.setdefault(text, []).append(place)
    different, found = list(asked), {}
    for start in range(0, len(different), BATCH):
        for reading in encode_layers(encoder, different[start : start + BATCH], attention=False):
            for place in asked[reading.text]:
                span = spans[place]
                last = span is None
                found[place] = reading.states.values[:, -1] if last else reading.word_states([span]).values[:, 0]
    return np.stack([found[place] for place in range(len(texts))], axis=1)
