"""Small traces for the figures, made from scenes of the world: no model, no torch, known heat."""

import numpy as np
from PIL import Image

from toushi.probe.analysis.maps import resample
from toushi.probe.text.alignment import Token, Word, segment
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.writer import TraceWriter

SITES = {
    "unet.down.0.cross_attention": (16, 2),
    "unet.middle.cross_attention": (4, 4),
    "unet.up.1.cross_attention": (8, 4),
}


def character_tokens(prompt: str) -> list[Token]:
    spans = [(i, i + 1) for i in range(len(prompt))]
    texts = [("<bos>", None, "special"), *((prompt[a:b], (a, b), "text") for a, b in spans), ("<eos>", None, "special")]
    return [Token(i, t, span, kind, ("encoder",), i, i) for i, (t, span, kind) in enumerate(texts)]


def made_trace(
    folder, prompt: str, picture: np.ndarray, masks: dict[Word, np.ndarray], steps: int = 10, **fields
) -> Trace:
    """A trace in which each word of `masks` is looked at inside its mask, more so at later steps."""
    random = np.random.default_rng(0)
    tokens = character_tokens(prompt)
    words = segment(prompt)
    manifest = {
        "model": {"name": "made", "revision": None, "weights_sha256": None},
        "prompt": prompt,
        "negative_prompt": "",
        "branches": {"cond": {"tokens": tokens, "words": words}},
        "sites": {
            n: {"kind": "cross", "grid": [g, g * picture.shape[1] // picture.shape[0]], "heads": h}
            for n, (g, h) in SITES.items()
        },
        "keep": "heads",
        "steps": {"count": steps, "times": list(np.linspace(1, 0, steps + 1))},
        "size": list(picture.shape[:2]),
        **fields,
    }
    with TraceWriter(folder, manifest) as writer:
        for step in range(steps):
            late = step / max(1, steps - 1)
            tensors = {}
            for name, site in manifest["sites"].items():
                score = random.normal(0, 0.3, (site["heads"], len(tokens), *site["grid"]))
                score[:, [0, -1]] += 1.5 - late
                for word, mask in masks.items():
                    inside = resample(mask.astype(float), tuple(site["grid"]))
                    score[:, 1 + word.start : 1 + word.end] += (0.5 + 2.5 * late) * inside
                weights = np.exp(score)
                maps = (weights / weights.sum(1, keepdims=True)).astype(np.float16)
                tensors[f"{name}/cond"] = maps if manifest["keep"] == "heads" else maps.mean(0)
            noise = random.integers(0, 256, picture.shape)
            tensors["preview"] = (late * picture + (1 - late) * noise).astype(np.uint8)[::2, ::2]
            writer.write_step(step, tensors)
        n = len(tokens)
        sharp = np.exp(random.normal(0, 1, (2, n, n)) + 2 * np.eye(n))
        attention = (sharp / sharp.sum(-1, keepdims=True)).astype(np.float32)
        writer.write_encoder(
            {"attention/0/cond": attention, "state/0/cond": random.normal(size=(n, 8)).astype(np.float32)}
        )
        writer.write_image(Image.fromarray(picture))
    return open_trace(folder)
