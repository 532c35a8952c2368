"""Runs of the shipped model for the lessons. What several learners ask for is sampled once."""

import shutil
import tempfile
import threading
import time
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import streamlit as st
from jaxtyping import Float, UInt8
from PIL import Image

from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.garbage_collection import freeze_loaded_objects
from toushi.dashboards.heat_map import component, payload
from toushi.dashboards.heat_map.matrices import read_matrices
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import segment
from toushi.probe.text.bpe import Tokenizer
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace

if TYPE_CHECKING:
    from toushi.probe.models.mini_unet import MiniUNet

STEPS, GUIDANCE = 8, 3.0  # of a lesson's run
VISIBLE = 64  # grey levels of change that are shown as the brightest colour
MAX_RUNS = 300  # about 1 MB each; the oldest are deleted
_one_at_a_time = threading.Lock()  # a model may not be recorded in two threads


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where the runs lie until the explorer ends: lessons leave nothing in the gallery."""
    return tempfile.TemporaryDirectory(prefix="toushi-lessons-")


@st.cache_resource(max_entries=MAX_RUNS, show_spinner=False, on_release=lambda path: shutil.rmtree(path, True))
def record(prompt: str, seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE) -> str:
    """The folder of the recorded run. Waits until the sampling worker has finished it."""
    order = worker.Order(prompt, steps=steps, guidance=guidance, seed=seed)
    job = worker.start(order, Path(_folder().name))
    while job.running:
        time.sleep(0.05)
    if job.state != "done":
        raise ToushiError(job.error or "The run was stopped.")
    return str(job.folder)


@st.cache_resource(max_entries=MAX_RUNS, show_spinner=False, on_release=lambda path: shutil.rmtree(path, True))
def record_without(folder: str, word: str) -> str:
    """The folder of the same run, in which no cell of the picture attends to the word."""
    from toushi.probe.edit_run import edit_run

    target = tempfile.mkdtemp(dir=_folder().name)
    with _one_at_a_time:
        edit_run(folder, target, remove=[word], model=model(), overwrite=True)
    return target


@st.cache_resource(show_spinner=False)
def tokenizer() -> Tokenizer:
    """That of the shipped model."""
    return Tokenizer.load(str(files("toushi.probe.models") / "weights" / "mini-unet" / "tokenizer.json"))


@st.cache_resource(show_spinner=False)
def model() -> "MiniUNet":
    """The shipped model in this process, for what the worker does not compute."""
    from toushi.probe.models.mini_unet import MiniUNet
    from toushi.probe.pipelines.load import load

    loaded = load("mini-unet")
    freeze_loaded_objects()
    assert isinstance(loaded, MiniUNet)
    return loaded


def trace_of(folder: str) -> Trace:
    return open_trace(folder)


def image_of(folder: str) -> UInt8[np.ndarray, "y x 3"]:
    """The finished picture of a run."""
    return np.asarray(trace_of(folder).image())


def difference(folder: str, other: str) -> Float[np.ndarray, "y x 3"]:
    """How far two pictures differ at each pixel and colour: grey levels, 0 to 255."""
    return np.abs(image_of(folder).astype(np.float32) - image_of(other))


def change_between(folder: str, other: str) -> float:
    """How far two pictures differ: grey levels, 0 to 255, on average over pixels and colours."""
    return float(difference(folder, other).mean())


def previews(folder: str) -> Float[np.ndarray, "step y x 3"]:
    """What the model expected at each step: grey levels."""
    trace = trace_of(folder)
    return np.stack([np.asarray(trace.preview(step), np.float32) for step in trace.steps])


def word_names(prompt: str) -> list[str]:
    """The words of a prompt in order, as edits and maps name them: cat, a#1, a#2."""
    texts = [word.text for word in segment(prompt)]
    return [f"{text}#{texts[:i].count(text) + 1}" if texts.count(text) > 1 else text for i, text in enumerate(texts)]


class Guesses(NamedTuple):
    """The picture that the model expects at one step, grey levels that may lie outside of 0 to 255."""

    without_words: Float[np.ndarray, "y x 3"]
    with_words: Float[np.ndarray, "y x 3"]


@st.cache_data(max_entries=MAX_RUNS, show_spinner=False)
def guesses_at(folder: str, step: int) -> Guesses:
    """Both guesses of a recorded run, by the linear preview: so the guidance formula holds for each pixel, too."""
    import torch
    import torch.nn.functional as F

    trace, net = trace_of(folder), model()
    time_now, prompt = trace.times[step], trace.prompt or ""
    if step:
        latents = torch.from_numpy(np.array(trace.latent(step - 1), np.float32))[None]
    else:
        latents = net.noise(1, 64, 64, trace.manifest.seed or 0)
    with _one_at_a_time:
        velocity = net.denoise(latents.repeat(2, 1, 1, 1), time_now, ["", prompt]).float()
    weight, bias = _preview_convolution()
    levels = F.conv2d(F.pad(latents - time_now * velocity, (1, 1, 1, 1), mode="replicate"), weight, bias)
    pictures = F.pixel_shuffle(levels, net.vae.factor).permute(0, 2, 3, 1).numpy()
    return Guesses(pictures[0], pictures[1])


@st.cache_resource(show_spinner=False)
def _preview_convolution():
    from toushi.probe.models.preview import fit_convolution

    vae = model().vae
    return fit_convolution(vae, vae.factor)


# --- the live components


@st.cache_data(max_entries=16, show_spinner=False)
def _picture(folder: str, language: str, lesson: dict) -> bytes:
    maps = library.word_maps_of(folder, library.trace_version(folder), "cond")
    return payload.picture_block(trace_of(folder), maps, "cond", language, lesson=lesson)


def show_picture(folder: str, hide: list[str], stacked: bool = False, **start: object) -> None:
    """The heat map component without the parts of these selectors, in this state at the beginning. `stacked`: the films
    below the picture."""
    lesson = {"hide": [*hide, ".settings", ".pickers", ".keys", ".others"], "stacked": stacked, "start": start}
    component.heat_map(_picture(folder, library.language(), lesson), key="lesson_picture")


def show_pictures(pictures: dict[str, UInt8[np.ndarray, "y x 3"]], in_row: int) -> None:
    """Small pictures with their captions, each pixel enlarged."""
    for row in (list(pictures.items())[i : i + in_row] for i in range(0, len(pictures), in_row)):
        for column, (caption, picture) in zip(st.columns(in_row), row):
            column.markdown(f"**{library.escape_markdown(caption)}**")
            column.image(enlarge(picture), width="stretch", output_format="PNG")


def enlarge(picture: UInt8[np.ndarray, "y x 3"], side: int = 320) -> UInt8[np.ndarray, "side side 3"]:
    """The picture with sharp pixels, `side` pixels wide and high."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def colour_map(values: Float[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Values from 0 to 1 in the colours of the heat maps."""
    return payload.colours()[(values.clip(0, 1) * 255).round().astype(int)]


def colour_change(folder: str, other: str) -> UInt8[np.ndarray, "y x 3"]:
    """Where two pictures differ; the brightest colour is for VISIBLE grey levels and more."""
    return colour_map(difference(folder, other).mean(-1) / VISIBLE)


def show_bytes(folder: str) -> None:
    """The text component with the bytes of each character, without the attention among the tokens."""
    component.text_map(_text(folder, {"bytes": True, "hide": [".columns", ".hint"]}), key="lesson_text")


def show_encoder(folder: str, layer: int) -> None:
    """The text component with the attention in this layer, from 1."""
    start = {"layer": layer - 1, "scale": "text"}
    component.text_map(_text(folder, {"hide": [".keys"], "start": start}), key="lesson_text")


def _text(folder: str, lesson: dict) -> bytes:
    trace = trace_of(folder)
    return payload.encoder_block(trace, read_matrices(trace, "cond"), "cond", library.language(), lesson)


@st.cache_data(max_entries=MAX_RUNS, show_spinner=False)
def state_of(text: str, word: str) -> Float[np.ndarray, " feature"]:
    """The word's state after the encoder's last layer, of length 1: the mean over its tokens."""
    from toushi.probe.encoders.encode_layers import encode_layers

    with _one_at_a_time:
        (encoding,) = encode_layers(model(), [text])
    state = encoding.word_states([word]).values[-1, 0]
    return state / np.linalg.norm(state)


def shares(folder: str) -> dict[str, float]:
    """The share of the picture's attention that each word gets, mean over steps, sites and heads."""
    maps = library.word_maps_of(folder, library.trace_version(folder), "cond")
    mean = maps.layers[0].shares[0, 0]
    return {unit.name: float(share) for unit, share in zip(maps.units, mean) if unit.kind == "word"}


def words_by_contrast(folder: str) -> list[str]:
    """The words of a run, the one whose map stands out most first."""
    maps = library.word_maps_of(folder, library.trace_version(folder), "cond")
    words = payload.by_contrast(maps.units, maps.layers[0].maps[0, 0])
    return [maps.units[i].name for i in words if maps.units[i].kind == "word"]
