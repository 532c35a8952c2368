"""Small made-up runs: random attention that sums to 1, through the real tokenizer."""

from dataclasses import dataclass, field

import numpy as np

from toushi.probe.text.alignment import segment, segmenter
from toushi.probe.text.bpe import Tokenizer
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.writer import TraceWriter

PROMPT = "左边是猫，右边是月亮，𰻝"
TOKENIZER = Tokenizer.train([PROMPT[:-1], "左边是猫头鹰，夜晚", "a red cat on the left"] * 4, vocab_size=340)

SITES = {
    "unet.down.0.cross_attention": {"kind": "cross", "grid": [8, 4], "heads": 2},
    "unet.middle.cross_attention": {"kind": "cross", "grid": [4, 2], "heads": 4},
    "encoder.layers.0.attention": {"kind": "encoder", "grid": None, "heads": 2},
}


@dataclass
class Run:
    """What a recorder would hand to the writer; `rest` gives a site attention that goes to no text."""

    prompt: str | None = PROMPT
    negative: str | None = ""
    keep: str = "heads"
    steps: int = 3
    sites: dict = field(default_factory=lambda: dict(SITES))
    branches: tuple[str, ...] = ("cond", "uncond")
    rest: bool = False
    columns: list[int] | None = None
    seed: int = 0

    def manifest(self, **fields) -> dict:
        branches = {}
        for branch in self.branches:
            encoding = TOKENIZER.encode((self.negative if branch == "uncond" else self.prompt) or "")
            branches[branch] = {"tokens": encoding.tokens, "words": segment(encoding.prompt)}
        if self.columns is not None:
            branches["cond"]["columns"] = self.columns
        return {
            "model": {"name": "made-up", "revision": "0", "weights_sha256": None},
            "prompt": self.prompt,
            "negative_prompt": self.negative,
            "branches": branches,
            "segmenter": segmenter(),
            "sites": self.sites,
            "keep": self.keep,
            "steps": {"count": self.steps, "times": list(np.linspace(1, 0, self.steps + 1))},
            "seed": self.seed,
            "size": [32, 16],
            **fields,
        }

    def maps(self, step: int, dtype=np.float16) -> dict[str, np.ndarray]:
        """All sites and branches with heads, before any reduction."""
        rng = np.random.default_rng([self.seed, step])
        manifest, tensors = self.manifest(), {}
        for site, about in self.sites.items():
            if about["kind"] != "cross":
                continue
            for branch in self.branches:
                tokens = len(manifest["branches"][branch]["tokens"])
                raw = rng.random((about["heads"], tokens + self.rest, *about["grid"])) ** 4
                full = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
                kept = self.columns if self.columns is not None and branch == "cond" else range(tokens)
                tensors[layout.map_key(site, branch)] = full[:, list(kept)].astype(dtype)
                if self.rest:
                    tensors[layout.rest_key(site, branch)] = full[:, -1].astype(dtype)
        return tensors

    def tensors(self, step: int) -> dict[str, np.ndarray]:
        maps = self.maps(step)
        if self.keep != "heads":
            maps = {key: value.astype(np.float32).mean(0).astype(np.float16) for key, value in maps.items()}
        rng = np.random.default_rng(step)
        maps["latent"] = rng.standard_normal((8, 8, 4)).astype(np.float32)
        maps["preview"] = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        return maps

    def write(self, folder, stop_after: int | None = None, **fields):
        with TraceWriter(folder, self.manifest(**fields)) as writer:
            for step in range(self.steps if stop_after is None else stop_after):
                writer.write_step(step, self.tensors(step), seconds=0.01)
        return folder
