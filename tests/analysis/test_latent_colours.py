"""Latents in colour: the last one looks like the picture."""

import numpy as np

from toushi.probe.analysis.latent_colours import colour_latents


def test_the_last_latent_looks_like_the_picture_and_noise_does_not():
    random = np.random.default_rng(0)
    picture = np.repeat(np.repeat(random.integers(0, 256, (12, 12, 3), dtype=np.uint8), 4, 0), 4, 1)
    mixing = random.normal(size=(5, 3))
    last = np.einsum("ck,yxk->cyx", mixing, picture[::4, ::4] / 255.0)
    noise = random.normal(size=last.shape) * 14  # of a sampler with large sigmas
    first, end = colour_latents(np.stack([noise, last]).astype(np.float32), picture).astype(int)
    assert np.abs(end - picture[::4, ::4]).max() <= 3
    assert np.abs(first - picture[::4, ::4]).mean() > 30
    assert (first > 0).mean() > 0.1 and (first < 255).mean() > 0.1, "scaled, not saturated"


def test_a_constant_latent_has_the_mean_colour():
    picture = np.full((8, 8, 3), (10, 200, 90), np.uint8)
    frames = colour_latents(np.zeros((2, 4, 4, 4), np.float16), picture)
    assert frames.shape == (2, 4, 4, 3) and np.abs(frames.astype(int) - (10, 200, 90)).max() <= 1
