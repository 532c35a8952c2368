"""How a picture was made, as text for a page, and how two pictures differ in that."""

from collections.abc import Callable

from toushi.dashboards import messages as text
from toushi.probe.trace.manifest import Lora
from toushi.probe.trace.picture_trace import Trace


def run_facts(trace: Trace, language: str) -> dict[str, str]:
    """What is known of the run: {"seed": "seed 1", "steps": "20 steps"}."""

    def say(key: str, **values) -> str:
        return text.say(language, key, **values)

    run = trace.manifest
    verdict = str(run.safety).replace(" ", "_")
    named = {
        "model": run.name_of_model,
        "revision": run.model and run.model.revision,
        "prompt": trace.prompt,
        "seed": run.seed is not None and say("fact_seed", s=run.seed),
        "steps": say("fact_steps", n=run.steps.count),
        "guidance": run.guidance is not None and say("fact_guidance", g=run.guidance),
        "sampler": run.sampler,
        "size": run.size and say("fact_size", w=run.size[1], h=run.size[0]),
        "negative": run.negative_prompt and say("fact_negative", n=run.negative_prompt),
        "loras": ", ".join(_lora(one, say) for one in run.loras or []),
        "safety": f"safety_{verdict}" in text.PAGE and say(f"safety_{verdict}"),
        "edits": "; ".join(_edit(one) for one in run.edits or []),
    }
    return {name: str(fact) for name, fact in named.items() if fact}


def differences(first: Trace, second: Trace, language: str) -> list[str]:
    """For each of two traces, how its run differs from the other: "seed 1 · 20 steps"."""
    both = run_facts(first, language), run_facts(second, language)
    for one in both:
        one.setdefault("edits", text.say(language, "fact_no_edit"))
    return [
        " · ".join(fact for name, fact in one.items() if both[1 - i].get(name) != fact) for i, one in enumerate(both)
    ]


def _lora(lora: Lora, say: Callable[..., str]) -> str:
    return say("fact_lora" if lora.on else "fact_lora_off", name=lora.file or lora.name, scale=lora.scale)


def _edit(edit: dict) -> str:
    """An edit in a few words: zero 猫 at unet.*.cross_attention."""
    return " ".join(str(part) for part in (edit.get("kind"), edit.get("word"), "@", edit.get("site")) if part)
