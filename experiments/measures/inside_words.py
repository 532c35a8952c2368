"""Characters inside words, and bytes inside characters: a part of `layer_semantics`.

*Characters*: in 左边是河马 and 左边是马, does the state of 马 in 河马 look like that of 马 alone, layer by layer? It is looked
up among all characters that stand alone in the same sentence. Where the vocabulary has 河马 as one token, 马 has no state
of its own, and the token's state is used (`own` False).

*Bytes*: a character that the vocabulary lacks is spelt in several tokens. Many characters share the first of them, so at
the embeddings it cannot tell which one it begins. From which layer does its state tell? It is looked up, in another
sentence, among characters that begin with the same token.
"""

import numpy as np
import pandas as pd

from toushi.experiments.measures.encoder_states import load_cpu_encoder, states_at
from toushi.experiments.runner.study import FEWEST
from toushi.probe.analysis.pairs import cross_retrieval
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import Encoder
from toushi.probe.text.alignment import token_shares

CARRIERS = {
    "马": "河马 斑马 马桶", "牛": "犀牛 蜗牛", "鱼": "鲸鱼 章鱼 鳄鱼", "鸡": "火鸡", "猫": "猫头鹰 熊猫", "熊": "熊猫 树袋熊",
    "龙": "恐龙 龙虾", "花": "花生", "狗": "热狗", "火": "火车 火箭 火鸡", "树": "树袋熊",
}  # fmt: skip
FRAMES = ("左边是{}", "{}在右边", "画的是{}，夜晚", "草地上有{}")
RARE = "鳌鹂蟋蟀鸫鸬鹚獾貘狍麂貂獭鼬鼹鼯鹈鹕鹮鹬鹞鸢隼鸨鸮鸷鹫鹭鹳鹇鸲鹡鸰鹟蜥蜴蝾螈鼋鼍鲟鲶鲈鲷鲑鲱鳕鳗鲽鲀蛏蚶蚬蛤蟾蚺蝮蚰蜒蜈蚣蜱虻蚋蠓"
TWO = ("这里有一只{}，很小", "大家都喜欢{}吗")


def inside_words(encoder: str, weights: str, seed: int) -> pd.DataFrame:
    model = load_cpu_encoder(encoder, weights, seed)
    return pd.DataFrame([*_characters(model, weights, seed), *_bytes(model, weights, seed)])


def _characters(model: Encoder, weights: str, seed: int):
    pairs = [(char, word) for char, words in CARRIERS.items() for word in words.split()]
    rows = []
    for frame in FRAMES:
        for char, word in pairs:
            start = frame.index("{}")
            at = start + word.index(char)
            rows.append((char, word, frame, frame.format(word), (at, at + 1), frame.format(char), (start, start + 1)))
    table = pd.DataFrame(rows, columns=["char", "word", "frame", "inside", "there", "alone", "here"])
    a = states_at(model, list(table.inside), list(table.there))
    b = states_at(model, list(table.alone), list(table.here))
    own = np.array([_has_own(model, text, span) for text, span in zip(table.inside, table.there)])
    for some, name in ((own, "own token"), (~own, "part of a token")):
        part = table[some]
        if part.char.nunique() > 1 and part.word.nunique() >= FEWEST:
            found = cross_retrieval(
                a[:, some], b[:, some], names=part.char, pools=part.frame, groups=part.word, seed=seed
            )
            yield from _rows("characters", weights, name, found, part.word.nunique())


def _bytes(model: Encoder, weights: str, seed: int):
    spelt = [char for char in RARE if _tokens(model, char) > 1]
    if len(spelt) < FEWEST:
        return
    sides, first = [], []
    for frame in TWO:
        readings = encode_layers(model, [frame.format(char) for char in spelt], attention=False)
        at = frame.index("{}")
        places = [np.flatnonzero(token_shares(reading.tokens, (at, at + 1)) > 0)[0] for reading in readings]
        sides.append(np.stack([r.states.values[:, place] for r, place in zip(readings, places)], axis=1))
        first = [reading.tokens[place].id for reading, place in zip(readings, places)]
    several = np.array([first.count(one) > 1 for one in first])
    if several.sum() < FEWEST:
        return
    pools = [f"id {one}" for one, many in zip(first, several) if many]
    found = cross_retrieval(*(side[:, several] for side in sides), pools=pools, seed=seed)
    yield from _rows("bytes", weights, "first of several tokens", found, int(several.sum()))


def _rows(part: str, weights: str, which: str, retrieval, count: int):
    for layer in retrieval.layer.values.tolist():
        at = retrieval.sel(layer=layer)
        names = ("retrieval", "retrieval_low", "retrieval_high", "retrieval_shuffled", "margin", "same", "different")
        numbers = {name: round(float(at[name]), 5) for name in names}
        yield {"part": part, "weights": weights, "which": which, "layer": layer, **numbers, "items": count}


def _has_own(model: Encoder, text: str, span: tuple[int, int]) -> bool:
    """Whether the character has tokens of its own, which it shares with no other character."""
    tokens, _ = model.tokenize(text)
    own = token_shares(tokens, span)
    return bool((own > 0).any() and (own[own > 0] == 1).all())


def _tokens(model: Encoder, char: str) -> int:
    tokens, _ = model.tokenize(f"一只{char}在")
    return int((token_shares(tokens, (2, 3)) > 0).sum())
