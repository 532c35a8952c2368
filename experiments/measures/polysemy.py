"""Chinese words with several senses in our own sentences, and Chinese-English sentences aligned by phrase.

`data/polysemy.md` describes the columns, how the sentences were made, and what they cannot show.
"""

import csv
from pathlib import Path

import pandas as pd

DATA = Path(__file__).parents[1] / "data"
POLYSEMY, PARALLEL = DATA / "polysemy.tsv", DATA / "parallel.tsv"


def _read(file: Path) -> pd.DataFrame:
    # QUOTE_NONE: a quotation mark is text. No cell is empty, so pandas must not take one for a missing value.
    return pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)


def read_polysemy() -> pd.DataFrame:
    """One row for each sentence: word, sense, gloss_en, place, sentence, start.

    `start` counts characters; `sentence[start : start + len(word)]` is the word, which occurs once. `place` says on
    which side of the word the context stands that decides the sense. The other side is shared: row k of one sense
    and row k of the other, counted within a word and a place, have the same text there, character for character.
    So up to and including an `after` word a causal encoder has read the same sentence for both senses.
    """
    return _read(POLYSEMY)


def read_parallel() -> pd.DataFrame:
    """One row for each aligned phrase: zh, en, zh_start, zh_end, en_start, en_end (characters; the end is exclusive)."""
    return _read(PARALLEL)
