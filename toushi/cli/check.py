"""`toushi check`: proves on this machine that recording a model is exact."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.model_options import Loads
from toushi.cli.output_file import check_output_file
from toushi.cli.terminal import table
from toushi.probe.base.atomic_io import write_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from toushi.probe.pipelines.family import Model


@dataclass(frozen=True)
class Check(Loads):
    ABOUT = """Checks on this machine that a model is recorded exactly: samples two steps, and tests each law.

  toushi check mini-unet
  toushi check models/z-image-turbo --dtype bf16
  toushi check stabilityai/stable-diffusion-xl-base-1.0 --size 512

The command samples the two steps three times: without recording, with recording, and while other code captures
queries and keys. Then it changes a word, a cell of the latents and a state of the text, and checks what else changes:

  picture        the recorded picture equals the unrecorded one, bit for bit
  maps           each recorded map equals an explicit softmax of the captured queries and keys, in fp64
  sums           text columns and rest sum to 1
  word           a changed word changes the ids at the positions of its own columns, and no other
  cell           a changed cell moves its own query most, at the first site (not for U-Nets)
  state          a changed text state moves its own key most, at the first site
  labels         the ids of the labels spell the prompt
  hooks          nothing is left in the model

The exit code is 1 if a law is broken. The result is a row: a JSON file that names model, weights, versions, device and
attention kernel. Send it to the project, which lists such rows in docs/families.md. The command takes a minute or two
on a GPU."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "mini-unet"
    """A shipped model, a folder with one, or a diffusers pipeline (folder or hub id)."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Size of the picture in pixels; if not given, half of the model's default where that is 512 or more."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File of the row; toushi-check-MODEL.json if not given."""

    def run(self) -> int:
        from tqdm import tqdm

        from toushi.cli.trace import checked_size
        from toushi.probe.model_check.check_model import DRAWINGS, check_model
        from toushi.probe.model_check.check_row import check_row
        from toushi.probe.pipelines.generate import check_arguments, generate
        from toushi.probe.pipelines.load import load_model

        size = checked_size(self.size)
        name = re.sub(r"[^\w.-]+", "-", Path(self.model).resolve().name)
        path = self.out or Path(f"toushi-check-{name}.json")
        check_output_file(path, "--out")
        model = load_model(self.model, self.checked_loading())
        size = small_size(model) if size is None else size
        check_arguments(model, size=size)

        def draw(prompts: list[str], negatives: list[str] | None) -> "list[Image]":
            return [generate(model, prompts[0], steps=2, size=size)]

        bar = tqdm(total=DRAWINGS, desc="drawing", leave=False, delay=2)
        with bar, tempfile.TemporaryDirectory() as folder:
            checked = check_model(model, draw, Path(folder), tick=bar.update)
            row = check_row(model, checked)
        words = {True: "holds", False: "BROKEN", None: "not tried"}
        print(table([("law", "", "measured"), *((law.name, words[law.holds], law.detail) for law in checked.laws)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, row)
        seconds = " and ".join(f"{name} {checked.seconds[name]:.1f} s" for name in ("bare", "recorded"))
        print(f"\n{table([('row', str(path)), ('time', f'{seconds} (two steps)')])}")
        return 1 if checked.breaches else 0


def small_size(model: "Model") -> tuple[int, int] | None:
    """Half of the sides that a large pipeline draws by default; None for the model's own size."""
    from toushi.cli.doctor import default_size
    from toushi.probe.pipelines.generate import SamplingModel
    from toushi.probe.pipelines.registry import family_of

    if isinstance(model, SamplingModel):
        return None
    side = default_size(family_of(model), model)
    return None if side < 512 else (side // 2, side // 2)
