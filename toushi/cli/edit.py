"""`toushi edit`: makes the run of a trace again with changes, and says what they changed."""

import math
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro

from toushi.cli.compare import describe_comparison
from toushi.cli.terminal import progress, table
from toushi.cli.trace import Globs, Words, check_folder
from toushi.probe.base.errors import ToushiError

Factors = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD=FACTOR ...")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD=TEXT ...")]
Directions = Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD=DIRECTION ...")]
CHANGES = ("without", "swap", "remove", "scale", "move", "keep_only", "knock_out", "head")


@dataclass(frozen=True)
class Edit:
    ABOUT = """Makes the run of a trace again with changes, and compares both pictures.

  toushi edit runs/cat --remove 猫                 (no image cell attends to 猫: was that attention needed?)
  toushi edit runs/cat --without 猫                (猫 is not in the prompt: what does the word do at all?)
  toushi edit runs/cat --scale 月亮=2              (twice the attention)
  toushi edit runs/cat --swap 猫=狗                (another word in its place)
  toushi edit runs/cat --move 猫=right             (its map half a picture to the right; left, right, up, down)
  toushi edit runs/cat --keep-only 猫              (of the text, only 猫 and the special tokens are attended to)
  toushi edit runs/cat --knock-out unet.middle.cross_attention --head 3      (without the output of this head)
  toushi edit runs/cat --remove 猫 --scale 月亮=2 --out runs/other             (several together)

Model, prompt, seed, steps, guidance, sampler and size are those of the trace. The new trace notes its parent and its
edits. In the output, A is the given trace and B the new one.

--without and --swap change the text first, and all other options name words of the changed prompt. Words are named as
everywhere: 猫, or 猫#2 for the second 猫. --remove, --scale, --move and --keep-only change the attention at every
image-to-text site, and then divide by the new sum, so that each sum is 1 again.

In Python: edit_run(trace, folder, remove=["猫"])."""

    trace: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The trace whose run is made again."""
    remove: Words = ()
    """Words that get no attention; the other text gets theirs."""
    without: Words = ()
    """Words that are left out of the prompt."""
    scale: Factors = ()
    """Words and the factors of their attention."""
    swap: Texts = ()
    """Words and the texts that replace them in the prompt, with any number of tokens."""
    move: Directions = ()
    """Words and where their maps are moved by half the picture: left, right, up or down."""
    keep_only: Words = ()
    """The only words that keep their attention."""
    knock_out: Globs = ()
    """Attention sites whose output becomes zero, as `toushi sites` lists them."""
    head: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = ()
    """Of --knock-out: only these heads, counted from 0. Each is zero before heads are mixed."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the new trace. If not given: beside the old one, with the changes in its name."""
    model: str | None = None
    """The model, or its folder. If not given, the one that the trace names."""
    overwrite: bool = False
    """Replace an existing trace in the folder."""

    def run(self) -> None:
        changes = self.checked_changes()
        folder = self.out or self.default_folder()
        from toushi.probe.trace.open import open_trace

        trace = open_trace(self.trace)
        check_folder(folder, self.overwrite)
        from toushi.probe.edit_run import edit_run

        with ExitStack() as stack:
            # The bar appears with the first step: before it, the model is loaded, and errors come.
            bar = cache(lambda: stack.enter_context(progress(trace.manifest.steps.count, 0, 1)))
            comparison = edit_run(
                trace,
                folder,
                **changes,
                model=self.model,
                overwrite=self.overwrite,
                callback=lambda *_: bar()(),
            )
        print(describe_comparison(comparison))
        line = f"{folder}  (open it with: toushi view {shlex.quote(str(folder))})"
        print(f"\n{table([('trace', line)])}")

    def checked_changes(self) -> dict[str, Any]:
        """The changes as `edit_run` takes them. Raises ToushiError for a text that is no WORD=VALUE."""
        changes: dict[str, Any] = {name: getattr(self, name) for name in CHANGES if getattr(self, name)}
        if not changes:
            raise ToushiError(f"there is nothing to change, for example: toushi edit {self.trace} --remove 猫")
        for name, example in (("scale", "月亮=2"), ("swap", "猫=狗"), ("move", "猫=right")):
            if name in changes:
                changes[name] = pairs(f"--{name}", changes[name], example)
        if "scale" in changes:
            changes["scale"] = {word: factor(word, text) for word, text in changes["scale"].items()}
        return changes

    def default_folder(self) -> Path:
        texts = [f"{name}-{'-'.join(map(str, getattr(self, name)))}" for name in CHANGES if getattr(self, name)]
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(texts))
        return self.trace.parent / f"{self.trace.resolve().name}-{name[:60]}"


def pairs(option: str, texts: tuple[str, ...], example: str) -> dict[str, str]:
    """WORD=VALUE texts as a mapping. A word may have a =, so the last one counts."""
    values = {}
    for text in texts:
        word, equals, value = text.rpartition("=")
        if not equals or not word or not value:
            raise ToushiError(f"{option} must be like {example}, but {text!r} came")
        if word in values:
            raise ToushiError(f"{option} names {word} twice; name it once")
        values[word] = value
    return values


def factor(word: str, text: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise ToushiError(f"--scale must be like 月亮=2, but the factor of {word} is {text!r}, which is no number")
