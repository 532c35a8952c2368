"""What a lesson is: its controls, the check of its prediction, and one function that shows the live component."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toushi.dashboards.lessons.lesson_texts import LESSONS

Values = Mapping[str, str | int | float]  # control -> what it is set to
Answer = str | int


@dataclass(frozen=True)
class Control:
    """Something that the learner changes. `kind`: prompt, seed, slider, or word (one of the prompt's).

    Its default is the number `default`, or the text `{lesson}_{kind}` of the lesson.
    """

    kind: str
    name: str
    default: float = 0.0
    low: float = 0.0
    high: float = 99.0
    step: float = 1.0


@dataclass(frozen=True)
class Question:
    """A question about the learner's own input. `check` says of an answer whether it is right, what is right, and why."""

    text: str
    check: Callable[[Answer], tuple[bool, str, str]]
    choices: tuple[str, ...] = ()  # without them the answer is a whole number


@dataclass(frozen=True)
class Lesson:
    """A lesson. Its texts are those of `lesson_texts` that begin with its name.

    guesses   what can be predicted; keys of texts, `{name}_guess_{key}`
    verdict   the right guess for the default values, and the numbers in the text `{name}_verdict`
    show      shows the live component for these values; returns the question about them, or None if they allow none
    predict_values  the numbers in the text `{name}_predict`
    """

    name: str
    guesses: tuple[str, ...]
    controls: tuple[Control, ...]
    verdict: Callable[[Values], tuple[str, dict[str, object]]]
    show: Callable[[Values], Question | None]
    predict_values: Callable[[Values], dict[str, object]] = lambda values: {}

    def defaults(self, language: str) -> dict[str, str | int | float]:
        """What the controls are set to at the beginning."""
        texts = ("prompt", "word")
        return {
            control.name: LESSONS.translate(language, f"{self.name}_{control.kind}") if control.kind in texts else control.default
            for control in self.controls
        }  # fmt: skip
