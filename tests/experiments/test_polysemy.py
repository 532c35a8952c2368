"""Every rule that `experiments/data/polysemy.md` claims of the data, each with a fault that it must find."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pandas as pd
import pytest
import rjieba

from toushi.experiments.measures.polysemy import DATA, read_parallel, read_polysemy
from toushi.probe.text.alignment import UnknownWord, find_word, segment

# All other words count as content, so 他, 不 and 一个 too may stand in four sentences of a sense at most.
FUNCTION = frozenset("的了着是在就都也和里上它她")
PUNCTUATION = frozenset("，。？！、：；“”")
SENSE = ["word", "sense"]


@cache
def tokens(text: str) -> tuple[str, ...]:
    return tuple(rjieba.cut(text, hmm=False))


def han(text: str) -> bool:
    return any("\u4e00" <= c <= "\u9fff" for c in text)


def sides(row) -> tuple[str, str]:
    return row.sentence[: row.start], row.sentence[row.start + len(row.word) :]


def shared_side(row) -> str:
    """The side that says nothing of the sense."""
    before, after = sides(row)
    return after if row.place == "before" else before


def skeleton(row) -> str:
    """The sentence with each run of content replaced: what a template would leave."""
    before, after = ("".join(t if t in FUNCTION or not han(t) else "_" for t in tokens(s)) for s in sides(row))
    return re.sub("_+", "_", f"{before}W{after}")


def bigrams(row) -> set[str]:
    text = row.sentence.replace(row.word, "W")
    return set(map("".join, itertools.pairwise(text)))


def senses(data: pd.DataFrame) -> Iterator[tuple[str, list]]:
    for key, group in data.groupby(SENSE, sort=False):
        yield "/".join(key), list(group.itertuples())


def counts(rows: list, parts: Callable) -> Counter:
    """In how many of the sentences each part stands."""
    return Counter(part for row in rows for part in set(parts(row)))


def context(row) -> list[str]:
    return [t for side in sides(row) for t in tokens(side)]


# --- the rules: what breaks each, listed ------------------------------------------------------------------


def columns(data):
    expected = ["word", "sense", "gloss_en", "place", "sentence", "start"]
    return [] if list(data.columns) == expected else [list(data.columns)]


def thirty_words(data):
    return [] if data.word.nunique() >= 30 else [data.word.nunique()]


def two_senses(data):
    found = data.groupby("word")[["sense", "gloss_en"]].nunique()
    return list(found[(found.sense < 2) | (found.gloss_en != found.sense)].index)


def one_gloss(data):
    blank = [key for key, rows in senses(data) if not all(r.gloss_en.strip() and r.gloss_en.isascii() for r in rows)]
    found = data.groupby(SENSE).gloss_en.nunique()
    return blank + list(found[found != 1].index)


def sixteen_sentences(data):
    return [key for key, rows in senses(data) if len(rows) < 16]


def halves(data):
    return [
        key
        for key, rows in senses(data)
        if not 2 * sum(r.place == "before" for r in rows) == 2 * sum(r.place == "after" for r in rows) == len(rows)
    ]


def offsets(data):
    return [r.sentence for r in data.itertuples() if r.sentence[r.start : r.start + len(r.word)] != r.word]


def word_once(data):
    return [r.sentence for r in data.itertuples() if r.sentence.count(r.word) != 1]


def found_by_the_workbench(data):
    """`find` is what a study asks for a word; a dictionary word that swallows it (放下包袱) would hide it."""

    def seen(row) -> bool:
        try:
            return find_word(row.sentence, segment(row.sentence), row.word) == (row.start, row.start + len(row.word))
        except UnknownWord:
            return False

    return [r.sentence for r in data.itertuples() if not seen(r)]


def lengths(data):
    return [s for s in data.sentence if not 8 <= len(s) <= 40]


def characters(data):
    """Han and full-width punctuation alone, with a full stop, a question mark or an exclamation mark at the end."""
    return [s for s in data.sentence if not all(han(c) or c in PUNCTUATION for c in s) or s[-1] not in "。？！"]


def no_two_alike(data):
    return list(data.sentence[data.sentence.duplicated()])


def no_near_copies(data):
    """Two sentences of a sense share at most 35 % of the bigrams of the one with fewer."""
    return [
        (one.sentence, other.sentence)
        for _, rows in senses(data)
        for one, other in itertools.combinations(rows, 2)
        if len(bigrams(one) & bigrams(other)) > 0.35 * min(len(bigrams(one)), len(bigrams(other)))
    ]


def templates(data):
    return [(key, s, n) for key, rows in senses(data) for s, n in Counter(map(skeleton, rows)).items() if n > 2]


def frames(data):
    """A shared side that is more than the end of a sentence is a frame, and stands twice in a sense at most."""
    return [
        (key, side, n)
        for key, rows in senses(data)
        for side, n in Counter(map(shared_side, rows)).items()
        if n > 2 and side not in ("", "。")
    ]


def repeated_context(data):
    return [
        (key, t, n)
        for key, rows in senses(data)
        for t, n in counts(rows, context).items()
        if n > 4 and han(t) and t not in FUNCTION
    ]


def telling(data):
    """No word, character or mark at all, 的 and ， included, stands in six more sentences of one sense than of another."""
    found = []
    for word, group in data.groupby("word", sort=False):
        for parts in context, lambda row: "".join(sides(row)):
            of = [counts(rows, parts) for _, rows in senses(group)]
            spread = {p: max(c[p] for c in of) - min(c[p] for c in of) for p in set().union(*of)}
            found += [(word, p, n) for p, n in spread.items() if n > 5]
    return found


def same_shared_side(data):
    """Row k of each sense, within a word and a place, has the same text on the side that does not decide."""
    found = []
    for key, group in data.groupby(["word", "place"], sort=False):
        of = [[shared_side(r) for r in rows] for _, rows in senses(group)]
        if any(one != of[0] for one in of):
            found.append(key)
    return found


def mean_length(data):
    mean = data.sentence.str.len().groupby([data.word, data.sense]).mean().groupby("word").agg(["min", "max"])
    return list(mean[mean["max"] > 1.2 * mean["min"]].index)


def mean_position(data):
    """Position 0: the word opens the sentence; 1: it ends it."""
    position = data.start / (data.sentence.str.len() - data.word.str.len())
    mean = position.groupby([data.word, data.place, data.sense]).mean().groupby(["word", "place"]).agg(["min", "max"])
    return list(mean[mean["max"] - mean["min"] > 0.1].index)


# --- a fault for each rule --------------------------------------------------------------------------------


def first(data, n: int) -> pd.Index:
    return data.index[:n]


def put(data, rows, **cells):
    for column, cell in cells.items():
        data.loc[rows, column] = cell
    return data


def ending(data, rows, text: str):
    """`text` before the last mark of these sentences."""
    return put(data, rows, sentence=data.sentence[rows].str[:-1] + text + data.sentence[rows].str[-1])


def opening(data, rows, text: str):
    return put(data, rows, sentence=text + data.sentence[rows], start=data.start[rows] + len(text))


def after_of_the_first_sense(data) -> pd.Index:
    row = data.iloc[0]
    return data.index[(data.word == row.word) & (data.sense == row.sense) & (data.place == "after")]


def three_from_a_template(data):
    for row, (one, other) in zip(first(data, 3), [("山坡", "高"), ("河水", "宽阔"), ("梦", "好看")]):
        data = put(data, row, sentence=f"{one}和{data.word[row]}都很{other}。", start=len(one) + 1)
    return data


def three_of_one_frame(data):
    for row in after_of_the_first_sense(data)[-3:]:
        data = put(data, row, sentence="据说" + data.sentence[row][data.start[row] :], start=2)
    return data


FAULTS = {
    columns: lambda d: d.drop(columns="place"),
    thirty_words: lambda d: d[d.word.isin(d.word.unique()[:29])],
    two_senses: lambda d: d[d.sense != d.sense.iloc[0]],
    one_gloss: lambda d: put(d, first(d, 1), gloss_en=""),
    sixteen_sentences: lambda d: d.iloc[1:],
    halves: lambda d: put(d, first(d, 1), place="before"),
    offsets: lambda d: put(d, first(d, 1), start=d.start + 1),
    word_once: lambda d: ending(d, first(d, 1), d.word[0]),
    found_by_the_workbench: lambda d: put(
        d, d.index[d.word == "包袱"][:1], sentence="他放下包袱，取出一双布鞋。", start=3
    ),
    lengths: lambda d: ending(d, first(d, 1), "长" * 30),
    characters: lambda d: put(d, first(d, 1), sentence=d.sentence.str.replace("，", ",")),
    no_two_alike: lambda d: put(d, d.index[1], sentence=d.sentence[0]),
    no_near_copies: lambda d: put(d, d.index[1], sentence=d.sentence[0][:-1] + "了。"),
    templates: three_from_a_template,
    frames: three_of_one_frame,
    repeated_context: lambda d: ending(d, first(d, 5), "，熊猫"),
    telling: lambda d: ending(d, first(d, 6), "的呀"),
    same_shared_side: lambda d: opening(d, after_of_the_first_sense(d)[:1], "这只"),
    mean_length: lambda d: ending(d, first(d, 16), "，真的假的我也说不清"),
    mean_position: lambda d: opening(d, after_of_the_first_sense(d), "不管怎么说"),
}


@pytest.fixture(scope="module")
def polysemy():
    return read_polysemy()


@pytest.mark.parametrize("rule", FAULTS, ids=lambda rule: rule.__name__)
def test_the_sentences_keep_the_rule(polysemy, rule):
    assert rule(polysemy) == []


@pytest.mark.parametrize("rule", FAULTS, ids=lambda rule: rule.__name__)
def test_the_rule_finds_its_fault(polysemy, rule):
    assert rule(FAULTS[rule](polysemy.copy()).reset_index(drop=True)) != []


# --- sentences in two languages ---------------------------------------------------------------------------


def spans(data, language: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    for _, group in data.groupby("zh", sort=False):
        yield group[language].iloc[0], sorted(zip(group[f"{language}_start"], group[f"{language}_end"]))


def parallel_columns(data):
    expected = ["zh", "en", "zh_start", "zh_end", "en_start", "en_end"]
    return [] if list(data.columns) == expected else [list(data.columns)]


def sixty_pairs(data):
    return [] if data.zh.nunique() >= 60 else [data.zh.nunique()]


def one_translation(data):
    pairs = data[["zh", "en"]].drop_duplicates()
    return list(pairs.zh[pairs.zh.duplicated(keep=False)]) + list(pairs.en[pairs.en.duplicated(keep=False)])


def three_phrases(data):
    found = data.zh.value_counts()
    return list(found[found < 3].index)


def inside(data):
    return [
        (text, span)
        for language in ("zh", "en")
        for text, group in spans(data, language)
        for span in group
        if not 0 <= span[0] < span[1] <= len(text)
    ]


def apart(data):
    """No character belongs to two phrases."""
    return [
        (text, one, other)
        for language in ("zh", "en")
        for text, group in spans(data, language)
        for one, other in itertools.pairwise(group)
        if one[1] > other[0]
    ]


def whole(data):
    """A phrase begins and ends where a word does in English, and holds no mark or space at its edges in either."""
    found = []
    for text, group in spans(data, "en"):
        edges = {at for match in re.finditer(r"[\w-]+", text) for at in match.span()} | {
            match.end() for match in re.finditer(r"\w+'", text)
        }
        found += [text[a:b] for a, b in group if not {a, b} <= edges]
    return found + [text[a:b] for text, group in spans(data, "zh") for a, b in group if not all(map(han, text[a:b]))]


def scripts(data):
    wrong = [s for s in data.zh if not all(han(c) or c in PUNCTUATION for c in s) or s[-1] not in "。？！"]
    return wrong + [s for s in data.en if not s.isascii() or s != s.strip() or s[-1] not in ".?!"]


PARALLEL_FAULTS = {
    parallel_columns: lambda d: d.drop(columns="en"),
    sixty_pairs: lambda d: d[d.zh.isin(d.zh.unique()[:59])],
    one_translation: lambda d: put(d, first(d, 1), en="Another one."),
    three_phrases: lambda d: d[(d.zh != d.zh[0]) | (d.index < 2)],
    inside: lambda d: put(d, first(d, 1), zh_end=99),
    apart: lambda d: put(d, first(d, 1), zh_end=d.zh_end[1]),
    whole: lambda d: put(d, first(d, 1), en_end=d.en_end[0] - 1),
    scripts: lambda d: put(d, first(d, 1), zh=d.zh[0] + " "),
}


@pytest.mark.parametrize("rule", PARALLEL_FAULTS, ids=lambda rule: rule.__name__)
def test_the_pairs_keep_the_rule(rule):
    assert rule(read_parallel()) == []


@pytest.mark.parametrize("rule", PARALLEL_FAULTS, ids=lambda rule: rule.__name__)
def test_the_rule_of_pairs_finds_its_fault(rule):
    assert rule(PARALLEL_FAULTS[rule](read_parallel())) != []


def test_the_description_counts_right(polysemy):
    described, parallel = (DATA / "polysemy.md").read_text(encoding="utf-8"), read_parallel()
    length = polysemy.sentence.str.len()
    for claim in (
        f"{polysemy.word.nunique()} words, ",
        f"{len(polysemy)} sentences of {length.min()} to {length.max()} characters (median {length.median():.0f})",
        " ".join(polysemy.word.unique()),
        f"{parallel.zh.nunique()} Chinese sentences",
        f"{len(parallel)} aligned phrases",
    ):
        assert claim in described
