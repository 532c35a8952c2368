"""How reliable the recogniser is: on real scenes with known contents, unchanged, through a model's VAE, and softer,
rougher or less steady, as generated pictures are; and on pictures without objects.

    python -m toushi.experiments.scene_world.validation --count 500 --model mini-unet
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import binomtest
from tqdm import tqdm

from toushi.experiments.scene_world.contact_sheet import contact_sheet
from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.recogniser import THRESHOLD, Recognition, judge, match, recognise
from toushi.experiments.scene_world.scenes import SIDE, Object, Scene, draw_scene
from toushi.experiments.scene_world.templates import backgrounds


@dataclass(frozen=True)
class Validation:
    """Compares what the recogniser sees with what is there."""

    count: int = 500
    """Scenes, seen as they are and through the VAE."""
    soft: int = 100
    """How many of them are also seen softer, rougher, larger, smaller and bent."""
    model: str = "mini-unet"
    """Name or folder of the model whose VAE is used; `none` leaves out all that needs one."""
    split: str = "test"
    failures: Path | None = None
    """Write a sheet of the pictures with errors, each beside a drawing of its recognition."""


Pictures = np.ndarray  # uint8 [n, 64, 64, 3]


def blur(pictures: Pictures, pixels: float) -> Pictures:
    """Gaussian, of this standard deviation."""
    return gaussian_filter(pictures.astype(np.float32), (0, pixels, pixels, 0)).round().astype(np.uint8)


def wobble(pictures: Pictures, pixels: float, seed: int = 0) -> Pictures:
    """Every point moved by a smooth random distance of this standard deviation, like a drawing by an unsteady hand."""
    random = np.random.default_rng(seed)
    out = np.empty_like(pictures)
    for picture, bent in zip(pictures, out):
        shift = gaussian_filter(random.normal(size=(2, SIDE, SIDE)), (0, 6, 6))
        points = np.mgrid[:SIDE, :SIDE] + shift * pixels / shift.std()
        for c in range(3):
            bent[..., c] = map_coordinates(picture[..., c].astype(np.float32), points, order=1, mode="nearest").round()
    return out


def scale_objects(scene: Scene, factor: float) -> Scene:
    """The same scene with objects of sizes that the world does not draw."""
    return replace(scene, objects=tuple(replace(o, pixels=round(o.pixels * factor)) for o in scene.objects))


def noise(count: int, pixels: float, seed: int = 0) -> Pictures:
    """Coloured noise of this grain, with the contrast of a scene."""
    grains = np.random.default_rng(seed).normal(size=(count, SIDE, SIDE, 3))
    grains = gaussian_filter(grains, (0, pixels, pixels, 0), mode="wrap")
    return np.clip(128 + 60 * grains / grains.std(), 0, 255).astype(np.uint8)


def through_vae(name: str) -> Callable[..., Pictures]:
    """A function (pictures, deviation) that encodes, adds noise of this deviation to the latents, and decodes."""

    from toushi.probe.pipelines.load import load_own

    vae = load_own(name).vae.eval()
    device = next(vae.parameters()).device
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def encode_and_decode(pictures: Pictures, deviation: float = 0.0) -> Pictures:
        parts = []
        for start in range(0, len(pictures), 50):
            unit = torch.from_numpy(pictures[start : start + 50]).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = vae.encode(unit.to(device))
            latents += deviation * torch.randn(latents.shape, generator=generator).to(device)
            decoded = vae.decode(latents).clamp(-1, 1).permute(0, 2, 3, 1).cpu()
            parts.append(((decoded + 1) * 127.5).round().byte().numpy())
        return np.concatenate(parts)

    return encode_and_decode


def accuracy(scenes: list[Scene], recognitions: list[Recognition]) -> pd.DataFrame:
    """Share right with its 95% Wilson interval, for each thing that can be right."""
    answers = {name: [] for name in ("object", "position", "colour", "sense", "place", "time", "style", "nothing more")}
    for scene, recognition in zip(scenes, recognitions):
        verdict = judge(scene, recognition)
        for name, given in (verdict.answers() | {"nothing more": [verdict.extra == 0]}).items():
            answers[name] += given
    rows = []
    for name, given in answers.items():
        interval = binomtest(sum(given), len(given)).proportion_ci(method="wilson") if given else (0.0, 1.0)
        rows.append((name, np.mean(given) if given else np.nan, *interval, len(given)))
    return pd.DataFrame(rows, columns=["what", "right", "low", "high", "cases"])


def scores(scenes: list[Scene], recognitions: list[Recognition]) -> np.ndarray:
    """The scores of the objects that were recognised."""
    matches = (match(scene, recognition) for scene, recognition in zip(scenes, recognitions))
    return np.array([detection.score for found in matches for detection in found if detection])


def draw_pictures(scenes: list[Scene]) -> Pictures:
    return np.stack([render(scene)[0] for scene in scenes])


def redraw(recognition: Recognition) -> np.ndarray:
    """A drawing of the recognition, uint8 [64, 64, 3]."""
    objects = tuple(Object(f.kind, None, f.colour, "medium", f.x, f.y, f.pixels) for f in recognition.objects)
    return render(Scene(objects, recognition.place, recognition.time, recognition.style, "row"))[0]


def has_error(scene: Scene, recognition: Recognition) -> bool:
    verdict = judge(scene, recognition)
    return verdict.extra > 0 or any(False in given for given in verdict.answers().values())


def _summarize(recognition: Recognition) -> str:
    things = (f"{f.colour or ''} {f.kind} {f.score:.2f}".strip() for f in recognition.objects)
    return f"{recognition.style} {recognition.time} {recognition.place}: {', '.join(things)}"


def main(config: Validation) -> None:
    scenes = [draw_scene(seed, config.split) for seed in range(config.count)]
    raw = draw_pictures(scenes)
    empty = backgrounds().astype(np.uint8)
    real = {"as drawn": raw}
    nothing = {"empty scenes": empty} | {f"noise, grain {g} px": noise(25, g) for g in (0, 1, 2, 4)}
    if config.model != "none":
        encode_and_decode, few = through_vae(config.model), scenes[: config.soft]
        real["through the VAE"] = decoded = encode_and_decode(raw)
        real |= {f"and blurred by {pixels} px": blur(decoded[: config.soft], pixels) for pixels in (0.7, 1.0)}
        real |= {f"latents with noise {rough}": encode_and_decode(raw[: config.soft], rough) for rough in (0.2, 0.4)}
        real |= {
            f"sizes times {k}, VAE": encode_and_decode(draw_pictures([scale_objects(scene, k) for scene in few]))
            for k in (0.9, 1.1)
        }
        real |= {f"bent by {bend} px, VAE": encode_and_decode(wobble(raw[: config.soft], bend)) for bend in (1.0, 1.5)}
        nothing["empty scenes, VAE"] = encode_and_decode(empty)
        nothing["empty scenes, noise 0.4"] = encode_and_decode(empty, 0.4)
    tables, cells = {}, []
    for name, pictures in real.items():
        recognitions = [recognise(picture) for picture in tqdm(pictures, desc=name)]
        tables[name] = accuracy(scenes, recognitions).set_index("what")
        if len(pictures) == len(scenes):
            print(f"\n{name}, {len(pictures)} pictures\n{tables[name].to_string(float_format='{:.3f}'.format)}")
        low = np.percentile(scores(scenes, recognitions), (0, 1, 5, 50)).round(2)
        tables[name].loc["lowest score", "right"], tables[name].loc["1% score", "right"] = low[:2]
        wrong = [i for i, recognition in enumerate(recognitions) if has_error(scenes[i], recognition)]
        cells += [([pictures[i], redraw(recognitions[i])], f"{name} {i} {_summarize(recognitions[i])}") for i in wrong]
    print(pd.DataFrame({name: table.right for name, table in tables.items()}).T.to_string(float_format="{:.3f}".format))
    for name, pictures in nothing.items():
        best = [recognise(picture, threshold=0.0) for picture in tqdm(pictures, desc=name)]
        highest = np.array([max((detection.score for detection in one.objects), default=0.0) for one in best])
        share = np.mean(highest >= THRESHOLD)
        print(f"{name}: highest score {highest.max():.2f}; something seen in {share:.1%} of {len(pictures)} pictures")
    if config.failures is not None and cells:
        contact_sheet(cells, columns=6).save(config.failures)


if __name__ == "__main__":
    main(tyro.cli(Validation, description=__doc__))
