"""Our own models in experiments: loaded by name or folder, and sampled in batches."""

from collections.abc import Sequence

import torch
from PIL import Image

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load


def load_own_model(name: str, device: str | None = None) -> MiniUNet:
    """The model, with as many threads as torch has: large batches gain from all. Raises ToushiError for a pipeline."""
    model = load(name, device, threads=torch.get_num_threads())
    if not isinstance(model, MiniUNet):
        raise ToushiError(
            f"expected mini-unet, a twin or a folder with such a model, but {name} is {type(model).__name__}"
        )
    return model


def sample_batch(model: MiniUNet, prompts: Sequence[str], **options) -> list[Image.Image]:
    """A picture for each prompt. `options` are those of `MiniUNet.sample`."""
    pictures = model.sample(list(prompts), **options)
    assert isinstance(pictures, list)  # as always for a list of prompts
    return pictures
