"""How long one waits for a word of a large trace: new process, imports done, page cache warm."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.text.alignment import Token, segment, segmenter
from toushi.probe.trace.trace_format import map_key
from toushi.probe.trace.writer import TraceWriter

LAYERS, STEPS, TOKENS, SIDE = 30, 30, 64, 64
READ = """
import json, sys, time
from toushi.probe.trace.open import open_trace
import toushi.probe.analysis.maps
seconds = []
start = time.perf_counter()
trace = open_trace(sys.argv[1])
for word in trace.words()[:6]:
    trace.attention(word, grid="native")
    seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
print(json.dumps(seconds))
"""


def write_trace(folder: Path, steps: int = STEPS) -> None:
    """A trace of a model with many layers, `keep="mean"`, filled with numbers."""
    prompt = "".join(chr(0x4E00 + 7 * i) for i in range(TOKENS))
    tokens = [Token(i, prompt[i], (i, i + 1), "text", ("text",), i, i) for i in range(TOKENS)]
    sites = {f"layers.{i}.attention": {"kind": "cross", "grid": [SIDE, SIDE], "heads": 30} for i in range(LAYERS)}
    manifest = {
        "model": {"name": "large", "revision": "0", "weights_sha256": None},
        "prompt": prompt,
        "negative_prompt": None,
        "branches": {"cond": {"tokens": tokens, "words": segment(prompt)}},
        "segmenter": segmenter(),
        "sites": sites,
        "keep": "mean",
        "steps": {"count": steps, "times": None},
        "seed": 0,
        "size": [8 * SIDE, 8 * SIDE],
    }
    rng = np.random.default_rng(0)
    maps = rng.random((TOKENS, SIDE, SIDE), dtype=np.float32).astype(np.float16) / TOKENS
    with TraceWriter(folder, manifest) as writer:
        for step in range(steps):
            writer.write_step(step, {map_key(site, "cond"): maps for site in sites})


def measure(model: MiniUNet, rounds: int, quick: bool = False) -> list[dict]:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        write_trace(folder, 3 if quick else STEPS)
        size = sum(file.stat().st_size for file in folder.iterdir())
        found = []
        for _ in range(rounds + 1):  # the first one warms the page cache
            done = subprocess.run([sys.executable, "-c", READ, str(folder)], check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout))
    first, later = np.median([f[0] for f in found[1:]]), np.median([s for f in found[1:] for s in f[1:]])
    row = {"trace_MB": round(size / 2**20), "first_answer_ms": round(1e3 * first), "later_words_ms": round(1e3 * later)}
    return [row | {"goal_first": 300, "goal_later": 50}]
