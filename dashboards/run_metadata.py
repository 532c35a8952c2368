"""How a picture was made, in words: what pages say below it, and in what two of them differ."""

from toushi.dashboards import messages as text


def facts(trace, language: str) -> dict[str, str]:
    """Name -> what is known of it: {"seed": "seed 1", "steps": "20 steps"}."""

    def say(key: str, **values) -> str:
        return text.say(language, key, **values)

    told = trace.manifest.get
    model, size = told("model"), told("size")
    verdict = str(told("safety")).replace(" ", "_")
    named = {
        "model": model.get("name") if isinstance(model, dict) else None,
        "revision": model.get("revision") if isinstance(model, dict) else None,
        "prompt": trace.prompt,
        "seed": told("seed") is not None and say("fact_seed", s=told("seed")),
        "steps": say("fact_steps", n=told("steps")["count"]),
        "guidance": told("guidance") is not None and say("fact_guidance", g=told("guidance")),
        "sampler": told("sampler"),
        "size": size and say("fact_size", w=size[1], h=size[0]),
        "negative": told("negative_prompt") and say("fact_negative", n=told("negative_prompt")),
        "loras": ", ".join(_lora(one, say) for one in told("loras") or []),
        "safety": f"safety_{verdict}" in text.PAGE and say(f"safety_{verdict}"),
        "edits": "; ".join(_edit(one) for one in told("edits") or []),
    }
    return {name: str(fact) for name, fact in named.items() if fact}


def differences(first, second, language: str) -> list[str]:
    """For each of two traces in what its run differs from the other: "seed 1 · 20 steps"."""
    both = facts(first, language), facts(second, language)
    for one in both:
        one.setdefault("edits", text.say(language, "fact_no_edit"))
    return [
        " · ".join(fact for name, fact in one.items() if both[1 - i].get(name) != fact) for i, one in enumerate(both)
    ]


def _lora(lora: dict, say) -> str:
    name = lora.get("file") or lora.get("name")
    return say("fact_lora" if lora.get("on") else "fact_lora_off", name=name, scale=lora.get("scale"))


def _edit(edit: dict) -> str:
    """An edit in a few words: zero 猫 at unet.*.cross_attention."""
    return " ".join(str(part) for part in (edit.get("kind"), edit.get("word"), "@", edit.get("site")) if part)
