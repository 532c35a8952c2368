"""Trains the VAE of mini-unet on drawn scenes; called by `toushi.experiments.training.train_mini_unet`.

The encoder determines the latents. After a denoiser was trained on them, only the decoder may be trained further
(`decoder_only`).
"""

import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.muon import make_optimizers
from toushi.experiments.training.scene_batches import pictures, unit
from toushi.probe.models.vae import VAE


def train_vae(
    vae: VAE, minutes: float, log: Path, decoder_only: bool = False, batch: int = 32, lr: float = 1.5e-3
) -> None:
    """Trains the VAE in place for so many minutes, then sets the normalisation of the latents."""
    torch.manual_seed(0)
    held = unit(pictures([draw_scene(seed, split="test") for seed in range(256)]))
    pool = pictures([draw_scene(seed) for seed in range(20_000)])
    vae.encoder.requires_grad_(not decoder_only)
    optims = make_optimizers(((n, p) for n, p in vae.named_parameters() if p.requires_grad), lr)
    start, step, bar = time.monotonic(), 0, tqdm(total=round(minutes * 60), unit="s", desc="VAE")
    while (spent := time.monotonic() - start) < minutes * 60:
        x = unit(pool[torch.randint(len(pool), (batch,))])
        mean, log_variance = vae.posterior(x)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        y = vae.decoder(latents)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        loss = (y - x).square().mean() + 0.3 * (y - x).abs().mean() + 3e-4 * kl
        loss.backward()
        rate = lr * min(1, step / 100) * min(1, 1.02 - spent / (minutes * 60)) ** 0.5
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = rate
            optim.step()
            optim.zero_grad()
        step += 1
        if step % 200 == 0:
            with torch.no_grad():
                error = (vae.decoder(vae.posterior(held)[0]) - held).square().mean().item()
            with log.open("a") as file:
                print(json.dumps(dict(step=step, seconds=round(spent), kl=kl.item(), held_out_mse=error)), file=file)
            bar.set_postfix(mse=f"{error:.5f}")
        bar.update(round(time.monotonic() - start) - bar.n)
    vae.requires_grad_(True)
    if not decoder_only:
        with torch.no_grad():
            means = torch.cat([vae.posterior(unit(pool[i : i + 500]))[0] for i in range(0, 5000, 500)])
        vae.mean.copy_(means.mean((0, 2, 3))[:, None, None])
        vae.deviation.copy_(means.std((0, 2, 3))[:, None, None])
