"""Text to bytes, tokens and words: why 龘 is several tokens."""

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    count = _tokens("龘")
    listed = " ".join(map(str, "龘".encode()))
    return str(count), {"size": runs.tokenizer().vocab_size, "bytes": listed, "n": count}


def _tokens(text: str) -> int:
    """The tokens of a text that is not cut, without <bos> and <eos>."""
    return len(runs.tokenizer().encode(text).ids) - 2


def show(values: Values) -> Question:
    text = str(values["prompt"])
    runs.show_bytes(runs.record(text, steps=1))
    size, tokens = len(text.encode()), _tokens(text)

    def check(answer: Answer) -> tuple[bool, str, str]:
        saved = size - tokens
        return answer == saved, str(saved), lesson_text("tokens_why", bytes=size, tokens=tokens, saved=saved)

    return Question(lesson_text("tokens_question"), check)


LESSON = Lesson("tokens", ("1", "2", "3", "6"), (Control("prompt", "prompt"),), verdict, show)
