"""Self-attention: the tokens of a text read each other, so dog in hot dog is no dog."""

import numpy as np
from jaxtyping import Float

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text, percent

CLOSE = 0.9  # a token that gets nearly as much is right, too


def attention_of_last(folder: str, layer: int) -> tuple[list[str], Float[np.ndarray, " token"]]:
    """The tokens between <bos> and <eos>, and what the last of them gives to each, mean over heads. Layers from 1."""
    trace = runs.trace_of(folder)
    tokens = [token.text for token in trace.encoder_tokens()]
    maps = trace.encoder_attention(layer - 1).mean("head").values
    return tokens[1:-1], maps[len(tokens) - 2, 1 : len(tokens) - 1]


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    tokens, given = attention_of_last(runs.record(str(values["prompt"])), int(values["layer"]))
    return "whole", {"token": tokens[-1], "others": percent(float(given[:-1].sum())), "layer": int(values["layer"])}


def show(values: Values) -> Question | None:
    prompt, layer = str(values["prompt"]), int(values["layer"])
    folder = runs.record(prompt)
    runs.show_pictures({prompt: runs.image_of(folder)}, in_row=3)
    runs.show_encoder(folder, layer)
    tokens, given = attention_of_last(folder, layer)
    if len(tokens) < 3:
        return None
    others = given[:-1]
    names = [f"{i + 1}: {token.strip() or '␣'}" for i, token in enumerate(tokens[:-1])]

    def check(answer: Answer) -> tuple[bool, str, str]:
        most = int(others.argmax())
        ranked = "，".join(f"{names[i]} {percent(float(others[i]))}" for i in np.argsort(-others)[:3])
        is_right = others[names.index(str(answer))] >= CLOSE * others[most]
        return bool(is_right), names[most], lesson_text("context_why", token=tokens[-1], layer=layer, ranked=ranked)

    return Question(lesson_text("context_question", token=tokens[-1], layer=layer), check, tuple(names))


LESSON = Lesson(
    "context", ("part", "both", "whole"), (Control("prompt", "prompt"), Control("slider", "layer", 2.0, 1.0, 12.0)),
    verdict, show,
)  # fmt: skip
