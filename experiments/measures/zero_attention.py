"""What becomes of a picture if no cell attends to one of its words?

    python -m toushi.experiments.measures.zero_attention "左边是猫，右边是月亮，夜晚" --out runs/without.png

A column for each word, a row for each seed. All cross-attention to the word is set to zero, at every step, layer and head,
and its share goes to the other tokens. If a word's column looks like the first one, the attention to it was not needed:
other words may say the same, or the text encoder may have moved its meaning into their states.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from toushi.experiments.scene_world.contact_sheet import contact_sheet
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load_own
from toushi.probe.text.alignment import segment


@dataclass(frozen=True)
class Config:
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")] = "左边是猫，右边是月亮，夜晚"
    words: tuple[str, ...] = ()
    """Which; all of the prompt's words if not given."""
    seeds: int = 4
    steps: int = 20
    out: Path = Path("runs/without.png")


def pictures(model: MiniUNet, config: Config) -> list[tuple[list[np.ndarray], str]]:
    """The unchanged column, then one for each word: its pictures below each other, and its title."""

    def column() -> list[np.ndarray]:
        drawn = model.sample([config.prompt] * config.seeds, steps=config.steps, seed=range(config.seeds))
        return [np.concatenate([np.asarray(picture) for picture in drawn])]

    columns = [(column(), "as it is")]
    for word in config.words or segment(config.prompt):
        text, span = (word, word) if isinstance(word, str) else (word.text, word.span)
        with edit(model, Edit("unet.*cross_attention", "zero", word=span, renormalise=True)):
            columns.append((column(), f"without {text}"))
    return columns


def main(config: Config) -> None:
    found = pictures(load_own("mini-unet", "cpu"), config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(found, len(found)).save(config.out)
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
