"""Peak memory against the number of steps: what is recorded must not pile up. One process for each number."""

import os
import subprocess
import sys

from tqdm import tqdm

STEPS = (5, 20, 80)
RUN = """
import sys, tempfile
from probe.models.load import load
from probe.record import record
keep, steps = sys.argv[1], int(sys.argv[2])
model = load("mini-unet", "cpu")
model.sample("猫", steps=2)
if keep == "bare":
    model.sample("左边是猫，右边是月亮", steps=steps)
else:
    with tempfile.TemporaryDirectory() as folder, record(model, folder + "/run", keep=keep):
        model.sample("左边是猫，右边是月亮", steps=steps)
"""


def peak(*command: str) -> tuple[float, int]:
    """Peak resident memory of a process, or of its largest child, in MB; and its exit code."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), process.returncode


def measure(model, rounds: int) -> list[dict]:
    rows = []
    for keep in tqdm(("bare", "sum", "mean", "heads"), unit="arm"):
        row: dict = {"arm": keep}
        for steps in STEPS:
            row[f"{steps} steps"], code = peak(sys.executable, "-c", RUN, keep, str(steps))
            if code:
                raise RuntimeError(f"the {keep} run of {steps} steps ended with exit code {code}")
        row["growth"] = round(row[f"{STEPS[-1]} steps"] / row[f"{STEPS[0]} steps"], 3)
        rows.append(
            {
                key: round(value, 1) if isinstance(value, float) and key != "growth" else value
                for key, value in row.items()
            }
        )
    return rows
