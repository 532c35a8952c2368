"""A made-up run whose words lie where a reader expects them, written as a real trace, without any model."""

import numpy as np
from PIL import Image, ImageDraw

from toushi.probe.text.alignment import segment, segmenter
from toushi.probe.text.bpe import Tokenizer
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.writer import TraceWriter

PROMPT = "左边是猫，右边是月亮，夜晚"
TOKENIZER = Tokenizer.train([PROMPT, "猫头鹰在右边", "a red cat on the left"] * 4, vocab_size=340)
CROSS = {
    "unet.down.0.cross_attention": {"kind": "cross", "grid": [16, 16], "heads": 2},
    "unet.down.1.cross_attention": {"kind": "cross", "grid": [8, 8], "heads": 4},
    "unet.middle.cross_attention": {"kind": "cross", "grid": [4, 4], "heads": 6},
    "unet.up.0.cross_attention": {"kind": "cross", "grid": [8, 8], "heads": 4},
    "unet.up.1.cross_attention": {"kind": "cross", "grid": [16, 16], "heads": 2},
}
SITES = {
    **CROSS,
    **{f"encoder.layers.{i}.attention": {"kind": "encoder", "grid": None, "heads": 4} for i in range(12)},
}
CENTRES = {"左": (0.5, 0.25), "猫": (0.6, 0.28), "右": (0.5, 0.75), "月": (0.25, 0.75), "夜": (0.1, 0.5)}


def write(folder, prompt=PROMPT, negative="", steps=6, keep="heads", stop_after=None, sites=SITES, only=None,
          branches=("cond", "uncond"), **fields):  # fmt: skip
    """The trace of a run with two branches; after `stop_after` steps it ends, as if it had been killed.

    `only`: the columns of the prompt that are kept.
    """
    texts = {"cond": prompt, "uncond": negative}
    encodings = {branch: TOKENIZER.encode(texts[branch]) for branch in branches}
    manifest = {
        "model": {"name": "made-up", "revision": "0", "weights_sha256": None},
        "prompt": prompt,
        "negative_prompt": negative,
        "branches": {name: {"tokens": e.tokens, "words": segment(e.prompt)} for name, e in encodings.items()},
        "segmenter": segmenter(),
        "sites": sites,
        "keep": keep,
        "steps": {"count": steps, "times": [float(t) for t in np.linspace(1, 0, steps + 1)]},
        "seed": 0,
        "guidance": 3.0,
        "sampler": "euler",
        "size": [64, 64],
        **fields,
    }
    manifest["branches"]["cond"]["columns"] = only
    writer = TraceWriter(folder, manifest)
    for step in range(steps if stop_after is None else stop_after):
        tensors = _tensors(encodings, sites, step / max(1, steps - 1), keep)
        if only is not None:
            tensors = {k: v[..., only, :, :] if k.endswith("/cond") else v for k, v in tensors.items()}
        writer.write_step(step, tensors)
    writer.write_encoder(_encoder(encodings, sites))
    if stop_after is None:
        writer.write_image(picture())
    writer.close(complete=stop_after is None)
    return folder


def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), (28, 36, 78))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 8, 56, 24), fill=(252, 224, 120))
    draw.ellipse((9, 28, 29, 50), fill=(236, 150, 62))
    draw.rectangle((0, 52, 64, 64), fill=(44, 92, 60))
    return image


def _tensors(encodings, sites, done: float, keep: str) -> dict[str, np.ndarray]:
    tensors = {}
    for name, site in sites.items():
        if site["kind"] != "cross":
            continue
        y, x = ((np.mgrid[0 : site["grid"][0], 0 : site["grid"][1]] + 0.5).T / site["grid"]).T
        for branch, encoding in encodings.items():
            logits = np.zeros((site["heads"], len(encoding.tokens), *site["grid"]))
            for head in range(site["heads"]):
                for i, token in enumerate(encoding.tokens):
                    cy, cx = CENTRES.get(token.text[:1], (0.9, (0.37 * i) % 1))
                    near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (0.015 + 0.012 * head))
                    logits[head, i] = (1 + 4 * done) * near + (2.5 if token.kind == "special" else 0)
            weights = np.exp(logits)
            maps = weights / weights.sum(1, keepdims=True)
            maps = maps if keep == "heads" else maps.mean(0)
            tensors[layout.map_key(name, branch)] = maps.astype(np.float16)
    noise = np.random.default_rng(int(1000 * done)).integers(0, 256, (64, 64, 3))
    tensors["preview"] = (done * np.asarray(picture()) + (1 - done) * noise).astype(np.uint8)
    tensors["latent"] = np.zeros((8, 16, 16), np.float16)
    return tensors


def _encoder(encodings, sites) -> dict[str, np.ndarray]:
    tensors = {}
    layers = [name for name, site in sites.items() if site["kind"] == "encoder"]
    for branch, encoding in encodings.items():
        n = len(encoding.tokens)
        for layer in (int(name.split(".")[2]) for name in layers):
            logits = np.random.default_rng(layer).normal(size=(4, n, n)) + (3 * np.eye(n) if layer < 4 else 0)
            logits[:, :, 0] += layer / 3
            weights = np.exp(logits)
            maps = weights / weights.sum(-1, keepdims=True)
            tensors[layout.encoder_attention_key(layer, branch)] = maps.astype(np.float32)
    return tensors
