"""Steps: what more of them change, and what other noise changes."""

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text

MOST = 40  # steps of the run that the others are compared with


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    prompt, steps = str(values["prompt"]), int(values["steps"])
    many = runs.record(prompt, 0, MOST)
    by = {
        "steps": runs.change_between(runs.record(prompt, 0, steps), many),
        "seed": runs.change_between(runs.record(prompt, 1, MOST), many),
    }
    right = "same" if max(by.values()) < 1.25 * min(by.values()) else max(by, key=lambda what: by[what])
    return right, {what: f"{change:.1f}" for what, change in by.items()}


def show(values: Values) -> Question:
    prompt, seed, steps = str(values["prompt"]), int(values["seed"]), int(values["steps"])
    few, many = runs.record(prompt, seed, steps), runs.record(prompt, seed, MOST)
    change = runs.change_between(few, many)
    runs.show_pictures({
        lesson_text("steps_picture", n=steps): runs.image_of(few), lesson_text("steps_picture", n=MOST): runs.image_of(many),
        lesson_text("steps_changed"): runs.colour_change(few, many),
    }, in_row=3)  # fmt: skip
    yes, no = lesson_text("steps_yes"), lesson_text("steps_no")

    def check(answer: Answer) -> tuple[bool, str, str]:
        rest = runs.change_between(runs.record(prompt, seed, 2 * steps), many)
        right = yes if rest > change / 2 else no
        return (
            answer == right,
            right,
            lesson_text("steps_why", n=steps, change=f"{change:.2f}", twice=2 * steps, rest=f"{rest:.2f}"),
        )

    return Question(lesson_text("steps_question", n=steps, change=f"{change:.2f}", twice=2 * steps), check, (yes, no))


LESSON = Lesson(
    "steps", ("steps", "seed", "same"),
    (Control("prompt", "prompt"), Control("seed", "seed"), Control("slider", "steps", 8.0, 2.0, 16.0)), verdict, show,
)  # fmt: skip
