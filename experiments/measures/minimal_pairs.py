"""Sentences in which one word has one of two senses: from the scene world, and ordinary Chinese.

Both are tables with a row for each sentence: word, sense, place, sentence, start, pair. `place` is the side of the word
whose text decides the sense. The other side is the same, character for character, in the two sentences of a pair. So the
shared side tells nothing, and a causal encoder has read the same text up to an `after` word.
"""

import pandas as pd

from toushi.experiments.measures.polysemy import read_polysemy
from toushi.experiments.scene_world.senses import SENSES, Sense
from toushi.probe.base.errors import ToushiError

# {A} is the word, with the context before it (河边的银行) or bare; what follows {A} in an `after` frame is shared too.
BEFORE = ("{A}在左边", "右边是{A}", "画的是{A}，夜晚")
AFTER = ("{A}在左边，", "右边是{A}，", "画的是{A}，")


def sentences(data: str) -> pd.DataFrame:
    """`scenes`: 12 words whose two senses are two pictures; `polysemy`: 32 words of `data/polysemy.tsv`."""
    if data == "scenes":
        return _scene_sentences()
    table = read_polysemy()
    number = table.groupby(["word", "sense", "place"]).cumcount()
    return table.assign(pair=table.place + number.astype(str))


def check_sentences(table: pd.DataFrame) -> pd.DataFrame:
    """The table, if each word is at its `start` and has at least two sentences for each of two senses."""
    for word, sentence, start in zip(table.word, table.sentence, table.start):
        if sentence[start : start + len(word)] != word:
            raise ToushiError(f"{word!r} is not at character {start} of {sentence!r:.60}")
    for word, part in table.groupby("word", sort=False):
        counts = part.groupby("sense").pair.nunique()
        if len(counts) < 2:
            raise ToushiError(f"{word} has sentences of one sense only, {counts.index[0]}; two are needed")
        if (counts < 2).any():
            sense = counts.idxmin()
            raise ToushiError(
                f"the sense {sense} of {word} has {counts[sense]} sentence; at least two are needed, one to learn from "
                "and one to ask"
            )
    return table


def _scene_sentences() -> pd.DataFrame:
    words: dict[str, list[Sense]] = {}
    for sense in SENSES.values():
        if sense.language == "zh":
            words.setdefault(sense.word, []).append(sense)
    rows = []
    for word, senses in words.items():
        for sense in senses:
            for place, contexts, frames in (("before", sense.before, BEFORE), ("after", sense.after, AFTER)):
                for number in range(min(len(getattr(one, place)) for one in senses)):
                    for frame in frames:
                        text, after = (contexts[number], "") if place == "before" else ("", contexts[number])
                        start = frame.index("{A}") + len(text)
                        sentence = frame.replace("{A}", text + word) + after
                        # Sentences with one context are never on both sides of a split.
                        rows.append((word, sense.kind, place, sentence, start, f"{place}{number}"))
    return pd.DataFrame(rows, columns=["word", "sense", "place", "sentence", "start", "pair"])
