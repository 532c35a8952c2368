"""Cross-attention: who looks at what."""

import numpy as np

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text, percent

THIRDS = ("left", "middle", "right")
CLOSE = 0.97  # another third that is nearly as bright is right, too


def thirds(folder: str, word: str) -> dict[str, float]:
    """The mean of the word's map in the left, the middle and the right third of the picture."""
    maps = np.array_split(runs.trace_of(folder).heat_map(word).values, 3, axis=1)
    return {name: float(part.mean()) for name, part in zip(THIRDS, maps)}


def _record(values: Values) -> str:
    return runs.record(str(values["prompt"]), int(values["seed"]))


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    word = lesson_text("attention_word")
    parts = thirds(_record(values), word)
    return _brightest(parts), {"word": word, **_percentages(parts)}


def show(values: Values) -> Question | None:
    folder = _record(values)
    runs.show_picture(folder, [], background="final")
    words = runs.words_by_contrast(folder)
    if not words:
        return None
    word = words[:2][-1]  # the map of the first one is shown already
    parts = thirds(folder, word)

    def check(answer: Answer) -> tuple[bool, str, str]:
        third = THIRDS[choices.index(str(answer))]
        right = lesson_text(f"attention_guess_{_brightest(parts)}")
        return (
            parts[third] >= CLOSE * max(parts.values()),
            right,
            lesson_text("attention_why", word=word, **_percentages(parts)),
        )

    choices = [lesson_text(f"attention_guess_{third}") for third in THIRDS]
    return Question(lesson_text("attention_question", word=word), check, tuple(choices))


def _brightest(parts: dict[str, float]) -> str:
    return max(parts, key=lambda part: parts[part])


def _percentages(parts: dict[str, float]) -> dict[str, object]:
    return {name: percent(part) for name, part in parts.items()}


LESSON = Lesson("attention", THIRDS, (Control("prompt", "prompt"), Control("seed", "seed")), verdict, show)
