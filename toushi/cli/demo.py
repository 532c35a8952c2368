"""`toushi demo`: records the first example."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from toushi.cli.terminal import table
from toushi.cli.trace import Trace
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.trace_format import FORMAT, format_of

PROMPT, STEPS, SEED, MODEL = "左边是猫，右边是月亮，夜晚", 20, 0, "mini-unet"


@dataclass(frozen=True)
class Demo:
    ABOUT = f"""Records the first example: a picture, and the heat map of each word of its prompt.

  toushi demo
  toushi demo --out runs/first

If you run it again, it replaces its own trace. It is the same as

  toushi trace "{PROMPT}" --steps {STEPS} --seed {SEED} --out runs/demo"""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/demo")
    """Folder of the trace."""
    overwrite: bool = False
    """Replace another trace in the folder."""

    def run(self) -> None:
        overwrite = self.overwrite or is_demo(self.out)
        Trace(prompt=PROMPT, model=MODEL, steps=STEPS, seed=SEED, out=self.out, overwrite=overwrite).run()
        rows = [
            ("Heat map of each word:", str(self.out / "words.png")),
            ("Explore it in the browser:", f"toushi view {shlex.quote(self.out.as_posix())}"),
            ("A prompt of your own:", 'toushi trace "a red cat on the left, at night" --out runs/mine'),
        ]
        print(f"\n{table(rows)}")


def is_demo(folder: Path) -> bool:
    """Whether the folder holds a trace that this command recorded."""
    if format_of(folder) != FORMAT:
        return False
    from toushi.probe.trace.open import open_trace

    try:
        manifest = open_trace(folder).manifest
    except ToushiError:
        return False
    recorded = manifest.prompt, manifest.steps.count, manifest.seed, manifest.name_of_model
    return recorded == (PROMPT, STEPS, SEED, MODEL) and not manifest.edits
