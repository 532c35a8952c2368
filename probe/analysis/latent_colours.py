"""Colours for latents, without the model's VAE: a linear map to RGB, fitted to the finished picture of the same run."""

import numpy as np
from jaxtyping import Float, UInt8

from toushi.probe.analysis.maps import resample

RIDGE = 1e-3


def colour_latents(
    latents: Float[np.ndarray, "step c y x"], picture: UInt8[np.ndarray, "Y X 3"]
) -> UInt8[np.ndarray, "step y x 3"]:
    """Each latent as a picture with one pixel for each cell. The last latent is that of `picture`.

    The map from the c channels of a cell to its colour is the ridge regression from the last latent to the picture.
    Latents with more variance than the last one are scaled down to it, as samplers with large sigmas do before they
    call the model.
    """
    latents = latents.astype(np.float64)
    spread = latents.std(axis=(1, 2, 3), keepdims=True)
    cells = latents * np.minimum(1, spread[-1] / np.maximum(spread, 1e-9))
    cells = np.moveaxis(np.concatenate([cells, np.ones_like(cells[:, :1])], axis=1), 1, -1)
    colours = np.moveaxis(resample(np.moveaxis(picture, -1, 0).astype(np.float32), cells.shape[1:3]), 0, -1)
    x, y = cells[-1].reshape(-1, cells.shape[-1]), colours.reshape(-1, 3).astype(np.float64)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    return (cells @ np.linalg.solve(gram, x.T @ y)).clip(0, 255).round().astype(np.uint8)
