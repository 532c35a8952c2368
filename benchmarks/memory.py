"""Peak memory against the number of steps: what is recorded must not pile up. One process for each number."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from benchmarks import peer
from toushi.probe.models.mini_unet import MiniUNet

STEPS = (5, 20, 80)
RUN = """
import sys, tempfile
from toushi.probe.recording.record import record
name, keep, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
if name == "mini-unet":
    from toushi.probe.pipelines.load import load
    pipeline = load("mini-unet", "cpu")
    pipeline.sample("猫", steps=2)
    draw = lambda: pipeline.sample("左边是猫，右边是月亮", steps=steps)
else:
    from benchmarks import peer
    from benchmarks.shapes import SMALL
    pipeline, draw = SMALL[name](steps)
if keep == "bare":
    draw()
elif keep in ("sum", "mean", "heads"):
    with tempfile.TemporaryDirectory() as folder, record(pipeline, folder + "/run", keep=keep):
        draw()
else:
    kept = peer.record_attention(pipeline, draw)
"""


# A process begins with the peak of the one that started it, so a small one stands between.
STARTER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def peak_memory(*command: str) -> tuple[float, int]:
    """Peak resident memory of a process, or of its largest child, in MB; and its exit code."""
    done = subprocess.run([sys.executable, "-S", "-c", STARTER, *command], capture_output=True, text=True, check=True)
    most, code = map(int, done.stdout.split())
    return most / (2**20 if sys.platform == "darwin" else 2**10), code


def measure(model: MiniUNet, rounds: int, quick: bool = False) -> list[dict]:
    keeps = ("bare", "sum", "mean", "heads")
    arms = [("mini-unet", keep) for keep in keeps]
    arms += [("stable-diffusion, small", keep) for keep in (*keeps, *[peer.NAME] * peer.is_installed())]
    steps = (2, 4) if quick else STEPS
    jobs = [(arm, count) for arm in (arms[1::3] if quick else arms) for count in steps]

    def run(job) -> float:
        (name, keep), count = job
        memory, ended = peak_memory(sys.executable, "-c", RUN, name, keep, str(count))
        if ended:
            raise RuntimeError(f"the {keep} run of {name} in {count} steps ended with exit code {ended}")
        return memory

    with ThreadPoolExecutor(2) as pool:  # memory is no time: two may run at once
        peaks = dict(zip(jobs, tqdm(pool.map(run, jobs), total=len(jobs), unit="process")))
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in jobs):
        mine = [peaks[arm, count] for count in steps]
        row = {"model": arm[0], "arm": arm[1], **{f"{n} steps": round(mb, 1) for n, mb in zip(steps, mine)}}
        rows.append(row | {"growth": round(mine[-1] / mine[0], 3)})
    return rows
