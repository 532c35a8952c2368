"""The `toushi` command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import toushi

HOUSE = Path(toushi.__file__).resolve().parents[1]
PROMPT = "左边是猫，右边是月亮，夜晚"


def command(*arguments: str, **environment) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(HOUSE), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "toushi", *arguments], capture_output=True, env=told, encoding="utf-8", timeout=120
    )
