"""The explorer with many visitors at once, and how fast it answers one.

    python -m benchmarks.crowd            # about three minutes; make bench-app
    python -m benchmarks.crowd --quick

Each visitor orders another picture at the same moment, waits for it, and must get its own. `ratio` is the time until
the last one has it, over the time of as many recorded samplings in a row in one process, before and after. On a busy
machine only ratios count. Latencies in a browser need Debian's chromium.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import tyro

from benchmarks.visitor import ENGLISH, Visitor
from toushi.dashboards.sampling_worker import Order
from toushi.probe.pipelines.generate import generate
from toushi.probe.pipelines.load import load
from toushi.probe.recording.record import record

COLOURS, KINDS = ("red", "blue", "green", "yellow", "black"), ("cat", "fish", "bird", "car", "star")
PROMPTS = [f"a {colour} {kind}" for colour, kind in product(COLOURS, KINDS)]
GOAL = 1.5  # ratio
SCRUB = """async (root, key) => {
  const times = []
  for (let i = 0; i < 100; i++) {
    const begin = performance.now()
    if (key) root.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
    else { const chips = root.querySelectorAll('button.chip'); chips[i % chips.length].click() }
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
    times.push(performance.now() - begin)
  }
  return times
}"""


@dataclass(frozen=True)
class Config:
    sessions: tuple[int, ...] = (1, 5, 20)
    """How many visitors come at once."""
    steps: int = Order.steps
    """Steps of each picture."""
    quick: bool = False
    """Two visitors and two steps: only whether it runs."""
    out: Path = Path("runs/benchmark-app.json")


def bare(prompts: list[str], steps: int, records: bool) -> float:
    """Seconds of so many samplings in a row."""
    model = load("mini-unet")
    with tempfile.TemporaryDirectory() as home:
        seconds = 0.0
        for number, prompt in enumerate(["a cat", *prompts]):  # the first is not counted
            begin = time.perf_counter()
            if records:
                with record(model, Path(home) / str(number)):
                    generate(model, prompt, steps=steps)
            else:
                generate(model, prompt, steps=steps)
            seconds += (time.perf_counter() - begin) * (number > 0)
    return seconds


@contextmanager
def explorer(home: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port of an explorer, and its process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "toushi", "view", "--port", str(port), "--headless"],
        cwd=home, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


async def crowd(port: int, prompts: list[str], steps: int) -> dict[str, float]:
    """As many visitors as prompts. Raises RuntimeError unless each gets its own picture and no other."""
    visitors = [Visitor(port) for _ in prompts]
    try:
        for visitor in visitors:
            await visitor.__aenter__()
            await visitor.open()

        async def visit(visitor: Visitor, prompt: str) -> float:
            await visitor.order(prompt, steps=steps)
            return await visitor.wait(lambda: bool(visitor.prompts or visitor.errors))

        times = await asyncio.gather(*map(visit, visitors, prompts))
    finally:
        for visitor in visitors:
            visitor.leave()
    wrong = [(prompt, one.prompts, one.errors) for one, prompt in zip(visitors, prompts) if one.prompts != [prompt]]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(prompts)} visitors did not get their picture, such as {wrong[0]}")
    return {
        "first_s": min(times),
        "last_s": max(times),
        "MB_each": sum(one.received for one in visitors) / len(visitors) / 1e6,
    }


async def leave_early(port: int) -> float:
    """Seconds from the end of a browser, whose picture would have taken long, to the begin of the next one's."""
    async with Visitor(port) as first, Visitor(port) as second:
        await first.open()
        await second.open()
        await first.order("a cat", steps=200, guidance=20)
        await first.wait(lambda: first.progress.startswith("Step"))
        await second.order("a dog", steps=200)
        await second.wait(lambda: "queue" in second.progress)
        first.leave()
        return await second.wait(lambda: second.progress.startswith("Step") or bool(second.prompts))


async def opening(port: int, trace: str, rounds: int) -> dict[str, float]:
    """Bytes and seconds of a trace that is opened by its address, first and again."""
    times, sizes = [], []
    for _ in range(rounds):
        async with Visitor(port) as visitor:
            begin = time.perf_counter()
            await visitor.open("picture", f"trace={trace}&{ENGLISH}")
            times.append(time.perf_counter() - begin)
            sizes.append(visitor.received / 1e6)
    return {"open_MB": max(sizes), "open_first_s": times[0], "open_again_s": float(np.median(times[1:] or times))}


def in_browser(port: int, trace: str) -> dict[str, float]:
    """Milliseconds from a key or a click to the painted frame, in chromium; nothing if there is none."""
    path = shutil.which("chromium")
    if path is None:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(f"http://localhost:{port}/picture?trace={trace}&{ENGLISH}")
        page.wait_for_selector(".toushi[data-ready]", timeout=60_000)
        found = {}
        for name, key in (("step", "ArrowRight"), ("layer", "ArrowDown"), ("word", None)):
            times = page.locator(".toushi").evaluate(SCRUB, key)
            found |= {f"{name}_ms": float(np.median(times)), f"{name}_p95_ms": float(np.percentile(times, 95))}
        browser.close()
    return found


def main(config: Config) -> None:
    sessions, steps = ((2,), 2) if config.quick else (config.sessions, config.steps)
    rows = []
    with tempfile.TemporaryDirectory() as home, explorer(Path(home)) as (port, process):
        asyncio.run(crowd(port, ["a horse"], steps))  # loads the model
        for count in sessions:
            prompts = PROMPTS[:count]
            row = {"sessions": count, "bare_s": bare(prompts, steps, False), "recorded_s": bare(prompts, steps, True)}
            row |= asyncio.run(crowd(port, prompts, steps))
            again = bare(prompts, steps, True)
            row |= {"recorded_again_s": again, "ratio": 2 * row["last_s"] / (row["recorded_s"] + again), "goal": GOAL}
            row |= {"server_MB": megabytes(process), "worker_MB": sum(map(megabytes, process.children()))}
            rows.append(row)
            print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)
        found: dict[str, float] = {"freed_s": asyncio.run(leave_early(port))}
        trace = f"runs/{next(Path(home, 'runs').iterdir()).name}"
        found |= asyncio.run(opening(port, trace, 2 if config.quick else 10)) | in_browser(port, trace)
        print(pd.Series(found).round(2).to_string())
    config.out.parent.mkdir(parents=True, exist_ok=True)
    load_average = os.getloadavg() if hasattr(os, "getloadavg") else None
    config.out.write_text(
        json.dumps({"load_average": load_average, "crowds": rows, "latencies": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
