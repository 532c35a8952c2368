"""Our own models in experiments, loaded by name or folder."""

import torch

from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load_own


def load_own_model(name: str, device: str | None = None) -> MiniUNet:
    """The model, with as many threads as torch has: large batches gain from all. Raises UnknownModel for a pipeline."""
    return load_own(name, device, threads=torch.get_num_threads())
