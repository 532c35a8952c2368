"""Noise to picture: the model's guess at each step, and when it changes most."""

import numpy as np
from jaxtyping import Float

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text, percent

HIDE = [".chips", ".shares", ".scalerow", ".plot", ".timeline > .label", ".stage .title"]
STEPS, CLOSE = 12, 0.9  # another interval that changed nearly as much is right, too


def changes(values: Values) -> Float[np.ndarray, " interval"]:
    """How much the guess changed from each step to the next, in grey levels per pixel and colour."""
    return np.abs(np.diff(runs.previews(_record(values)), axis=0)).mean((1, 2, 3))


def _record(values: Values) -> str:
    return runs.record(str(values["prompt"]), int(values["seed"]), STEPS)


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    by_step = changes(values)
    parts = dict(zip(("early", "middle", "late"), (by_step[:4].sum(), by_step[4:8].sum(), by_step[8:].sum())))
    return max(parts, key=lambda part: parts[part]), {k: percent(part / by_step.sum()) for k, part in parts.items()}


def show(values: Values) -> Question:
    folder = _record(values)
    runs.show_picture(folder, HIDE, stacked=True, bare=True, background="seen", step=1)
    by_step, times = changes(values), runs.trace_of(folder).times
    most, least = int(by_step.argmax()), int(by_step.argmin())

    def check(answer: Answer) -> tuple[bool, str, str]:
        return by_step[choices.index(str(answer))] >= CLOSE * by_step[most], choices[most], lesson_text(
            "noise_why", a=most + 1, b=most + 2, c=least + 1, d=least + 2, most=f"{by_step[most]:.1f}",
            least=f"{by_step[least]:.1f}", noise=percent(times[most]), rest=percent(times[least]),
        )  # fmt: skip

    choices = [f"{i} → {i + 1}" for i in range(1, STEPS)]
    return Question(lesson_text("noise_question"), check, tuple(choices))


LESSON = Lesson(
    "noise", ("early", "middle", "late"), (Control("prompt", "prompt"), Control("seed", "seed")), verdict, show
)
