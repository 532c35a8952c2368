"""Trains the VAE of mini-unet on drawn scenes; called by `toushi.experiments.training.train_mini_unet`."""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.checkpoint import append_row
from toushi.experiments.training.muon import make_optimizers, take_step
from toushi.experiments.training.scene_batches import stack_pictures, unit
from toushi.probe.models.vae import VAE

BATCH, LR = 32, 1.5e-3


def train_vae(vae: VAE, minutes: float, log: Path) -> None:
    """Trains the VAE in place for so many minutes, then sets the normalisation of the latents."""
    torch.manual_seed(0)
    held = unit(stack_pictures(render(draw_scene(seed, split="test"))[0] for seed in range(256)))
    pool = stack_pictures(render(draw_scene(seed))[0] for seed in tqdm(range(20_000), "drawing scenes"))
    optimizers = make_optimizers(vae.named_parameters(), LR)
    start, step, bar = time.monotonic(), 0, tqdm(total=round(minutes * 60), unit="s", desc="VAE")
    while (spent := time.monotonic() - start) < minutes * 60:
        x = unit(pool[torch.randint(len(pool), (BATCH,))])
        mean, log_variance = vae.posterior(x)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        y = vae.decoder(latents)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        loss = (y - x).square().mean() + 0.3 * (y - x).abs().mean() + 3e-4 * kl
        loss.backward()
        take_step(optimizers, LR * min(1, step / 100) * min(1, 1.02 - spent / (minutes * 60)) ** 0.5)
        step += 1
        if step % 200 == 0:
            with torch.no_grad():
                error = (vae.decoder(vae.posterior(held)[0]) - held).square().mean().item()
            append_row(log, dict(step=step, seconds=round(spent), kl=kl.item(), held_out_mse=error))
            bar.set_postfix(mse=f"{error:.5f}")
        bar.update(round(time.monotonic() - start) - bar.n)
    with torch.no_grad():
        means = torch.cat([vae.posterior(unit(pool[i : i + 500]))[0] for i in range(0, 5000, 500)])
    vae.mean.copy_(means.mean((0, 2, 3))[:, None, None])
    vae.deviation.copy_(means.std((0, 2, 3))[:, None, None])
