"""Rows of the family table for diffusers' text-to-image pipelines, as diffusers 0.42 runs them.

Nothing here imports diffusers: a pipeline is known by the name of its class. What the denoiser gets is told by the
arguments of its `forward`, which prompt a text belongs to by the ids that the text encoders really were given.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probe.errors import ToushiError
from probe.models.families import Encoded, Family, Said, Scene, Site, Stepped, Stretch
from probe.models.mini_unet import PromptCut
from probe.text.alignment import Token
from probe.text.spelling import Misspelled, Vocabulary, spelled_out

BLOCK = 32  # Z-Image fills image and caption to a multiple of it, and attends to the filling
SENTINEL = "toushi7prompt"


class UnreadableAttention(ToushiError):
    """An attention of the pipeline runs where it cannot be read; the message says how to choose another one."""


class UnspelledPrompt(UserWarning):
    """The tokens that were encoded do not spell the prompt, so that they have no place in it."""


# --- what was said ---


@dataclass(frozen=True)
class Part:
    """A stretch of the denoiser's text columns, and the encoder that it comes from.

    encoders   of those that there are the first one's ids label the columns (SDXL joins two states in each)
    prompts    the arguments of `encode_prompt` that may carry its prompt; the first that is given counts
    kept       which positions become columns: "all", or "real", those that the encoder's mask keeps
    dropped    so many real ones at the beginning do not become columns
    template   what the pipeline puts before and after the prompt
    """

    encoders: tuple[str, ...] = ("text_encoder",)
    prompts: tuple[str, ...] = ("prompt",)
    kept: str = "all"
    dropped: Callable[[Any], int] = lambda pipeline: 0
    template: Callable[[Any], tuple[str, str]] = lambda pipeline: ("", "")


def encoded(
    said: Said,
    parts: Sequence[Part],
    states: Sequence[Tensor] | None,
    run: int | None,
    negative: bool = False,
    block: int = 1,
) -> list[Encoded]:
    """The texts of one branch, one for each picture. `states` are their real columns [column, feature].

    `run` says which run of the encoders was theirs; None if they were not run for them: then nothing is known but
    the states, and the tokens are numbers. Columns are filled up to a multiple of `block`.
    """
    if states is None:
        return []
    first = said.ids.get(parts[0].encoders[0], ())
    count = len(first[run].ids) if run is not None and run < len(first) else 0
    if not count or len(states) % count:
        return [Encoded(None, (), tuple(_numbered(0, len(one), block)), one) for one in states]
    texts = []
    for prompt in range(count):
        text, ids, tokens = _one(said, parts, run or 0, prompt, count, negative)
        for one in states[prompt * (len(states) // count) : (prompt + 1) * (len(states) // count)]:
            known = [token if (token.column or 0) < len(one) else _without_column(token) for token in tokens]
            width = sum(token.column is not None for token in known)
            texts.append(Encoded(text, ids, (*known, *_numbered(width, len(one), block)), one))
    return texts


def _one(said: Said, parts: Sequence[Part], run: int, number: int, count: int, negative: bool):
    """Prompt, ids of the first encoder without padding, and tokens of one prompt."""
    tokens: list[Token] = []
    prompt, first_ids, width = None, None, 0
    for part in parts:
        name = next((name for name in part.encoders if len(said.ids.get(name, ())) > run), None)
        if name is None:
            continue
        names = [f"negative_{name}" if negative else name for name in part.prompts]
        given = next((said.arguments[name] for name in names if said.arguments.get(name) is not None), None)
        text = _of_number(given, number, count)
        prompt = text if prompt is None else prompt
        read = said.ids[name][run]
        ids, mask = read.ids[number], None if read.mask is None else read.mask[number]
        columns: list[int | None] = list(range(width, width + len(ids)))
        if part.kept == "real":
            places = np.cumsum(mask or [1] * len(ids)) - 1 - part.dropped(said.model)
            kept = [mask is None or bool(mask[i]) for i in range(len(ids))]
            columns = [width + int(p) if keep and p >= 0 else None for p, keep in zip(places, kept)]
        encoders = tuple(name for name in part.encoders if getattr(said.model, name, None) is not None)
        vocabulary = Vocabulary.of(getattr(said.model, name.replace("text_encoder", "tokenizer")))
        found = _spelled(vocabulary, ids, mask, prompt, text, columns, encoders, part.template(said.model))
        tokens += [token for token in found if token.kind != "pad" or token.column is not None]
        if first_ids is None:
            first_ids = tuple(token.id for token in found if token.kind != "pad")
        width += sum(column is not None for column in columns)
    return prompt, first_ids or (), tokens


def _spelled(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str | None,
    text: str | None,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
) -> list[Token]:
    """The tokens with their places in `prompt`; without, if the encoder was given another `text`."""
    try:
        tokens, cut = spelled_out(vocabulary, ids, mask, text or "", columns, encoders, template)
    except Misspelled as error:
        warnings.warn(
            UnspelledPrompt(
                f"the ids that {encoders[0]} was given do not spell the prompt {text!r:.60}: {error}. Its maps are by "
                "token only, not by word (a pipeline may have cleaned or replaced the text)."
            ),
            stacklevel=2,
        )
        tokens = [
            Token(id, vocabulary.fast.id_to_token(id) or "", None, kind, encoders, index, column)
            for index, (id, kind, column) in enumerate(zip(ids, vocabulary.kinds(ids, mask), columns))
        ]
        return tokens
    if cut is not None:
        warnings.warn(
            PromptCut(f"the prompt is longer than {encoders[0]} reads; cut: {(text or '')[cut:]}"), stacklevel=2
        )
    if text != prompt:
        tokens = [Token(t.id, t.text, None, t.kind, t.encoders, t.position, t.column) for t in tokens]
    return tokens


def _of_number(given: Any, number: int, count: int) -> str:
    """The prompt of this number, of one or a list of them; none is an empty one."""
    if given is None or isinstance(given, str):
        return given or ""
    return given[number] if len(given) == count else given[0]


def _numbered(start: int, end: int, block: int) -> list[Token]:
    """Tokens of which nothing is known but the column; beyond `end`, up to a multiple of `block`, filling."""
    last = -(-end // block) * block
    return [
        Token(None, f"#{column}" if column < end else "", None, "text" if column < end else "pad", (), column, column)  # pyright: ignore[reportArgumentType]
        for column in range(start, max(start, last))
    ]


def _without_column(token: Token) -> Token:
    return Token(token.id, token.text, token.span, token.kind, token.encoders, token.position, None)


def _in_one_call(parts: Sequence[Part], of: Callable[[Said], tuple], block: int = 1):
    """`texts` of a family whose `encode_prompt` gives both branches; `of` gives the states of each or None."""

    def texts(said: Said) -> dict[str, list[Encoded]]:
        positive, negative = of(said)
        own = said.arguments.get("prompt_embeds") is None
        found = {"cond": encoded(said, parts, positive, 0 if own else None, block=block)}
        if negative is not None and len(negative):
            run = (1 if own else 0) if said.arguments.get("negative_prompt_embeds") is None else None
            found["uncond"] = encoded(said, parts, negative, run, negative=True, block=block)
        return found

    return texts


def _in_two_calls(parts: Sequence[Part], of: Callable[[Said], Sequence[Tensor]]):
    """`texts` of a family that calls `encode_prompt` for the prompt, then for the negative one."""

    def texts(said: Said) -> dict[str, list[Encoded]]:
        branch = "uncond" if "cond" in said.before else "cond"
        own = said.arguments.get("prompt_embeds") is None
        return {branch: encoded(said, parts, of(said), 0 if own else None)}

    return texts


def _unbound(said: Said) -> tuple:
    positive, negative = said.result[:2]
    return positive.unbind(), None if negative is None else negative.unbind()


def masked(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The real columns of each row."""
    if mask is None:
        return list(states.unbind())
    return [row[keep] for row, keep in zip(states, mask.bool())]


# --- what is drawn ---


def _step(step: Callable, arguments: Mapping[str, Any]) -> Stepped:
    others = arguments.get("kwargs", {})
    result = step(**{name: value for name, value in arguments.items() if name != "kwargs"}, **others)
    return Stepped(result, result[0] if isinstance(result, tuple) else result.prev_sample, None)


def _pictures(result) -> list | None:
    """PIL pictures of what a pipeline returns; None if it was asked for latents."""
    images = result[0] if isinstance(result, tuple) else result.images
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[-1] == 3:
        return [Image.fromarray((image * 255).round().astype("uint8")) for image in images]
    if isinstance(images, list) and all(isinstance(image, Image.Image) for image in images):
        return images
    return None


def _about(pipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    generator = arguments.get("generator")
    seeds = [_seed(one) for one in generator] if isinstance(generator, list) else _seed(generator)
    about = {
        "guidance": arguments.get("guidance_scale"),
        "sampler": type(pipeline.scheduler).__name__,
        "seed": seeds,
    }
    if arguments.get("true_cfg_scale") is not None:
        about["true_guidance"] = arguments["true_cfg_scale"]
    return about


def _seed(generator: torch.Generator | None) -> int | None:
    return None if generator is None else generator.initial_seed()


def unpacked(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents [row, cell, 4 * channel], packed two by two, as [row, channel, y, x]."""
    if latents.dim() != 3:
        return latents
    packed = latents.unflatten(1, grid).unflatten(3, (-1, 2, 2))
    return packed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


# --- what the denoiser is given ---


def _unet_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    latents, text = inputs["sample"], inputs["encoder_hidden_states"]
    return Scene((latents.shape[-2], latents.shape[-1]), (text,), lambda: list(text.unbind()))


def _patched_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    """Latents cut into patches, cross-attention to text with a mask."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    key = (text,) if mask is None else (text, mask)
    return Scene(_patches(pipeline, inputs["hidden_states"]), key, lambda: masked(text, mask))


def _patches(pipeline, latents: Tensor) -> tuple[int, int]:
    patch = pipeline.transformer.config.patch_size
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def _sd3_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    latents, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    rows, columns = grid = _patches(pipeline, latents)
    stretch = Stretch(0, rows * columns, text.shape[1])
    return Scene(grid, (text,), lambda: list(text.unbind()), (stretch,) * len(text))


def _flux_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    """Image ids are (time, y, x, …) for each cell; pictures given for reference have later times and come behind."""
    text, ids = inputs["encoder_hidden_states"], inputs["img_ids"]
    ids = ids.reshape(-1, ids.shape[-1])
    rows, columns = (ids[ids[:, 0] == 0, 1:3].amax(0).long() + 1).tolist()
    stretch = Stretch(text.shape[1], 0, text.shape[1])
    return Scene((rows, columns), (text,), lambda: list(text.unbind()), (stretch,) * len(text))


def _qwen_image_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_mask"]
    shapes = inputs["img_shapes"][0]
    _, rows, columns = shapes[0] if isinstance(shapes, list) else shapes
    stretch = Stretch(text.shape[1], 0, text.shape[1])
    key = (text,) if mask is None else (text, mask)
    return Scene((rows, columns), key, lambda: masked(text, mask), (stretch,) * len(text))


def _z_image_scene(pipeline, inputs: Mapping[str, Any]) -> Scene:
    latents, text = inputs["x"], inputs["cap_feats"]
    rows, columns = latents[0].shape[-2] // 2, latents[0].shape[-1] // 2
    filled = -(-rows * columns // BLOCK) * BLOCK
    joint = tuple(Stretch(0, filled, -(-len(one) // BLOCK) * BLOCK) for one in text)
    return Scene((rows, columns), tuple(text), lambda: list(text), joint)


# --- which attention can be read ---


def readable(*processors: str) -> Callable[[Any, Mapping[str, Site]], None]:
    """A check that image-to-text attention runs in one of these processors, on PyTorch's own kernels."""

    def check(pipeline, sites: Mapping[str, Site]) -> None:
        for name, site in sites.items():
            if site.kind == "encoder":
                continue
            processor = getattr(site.module, "processor", None)
            kind = type(processor).__name__
            if kind not in processors:
                part = name.partition(".")[0]
                raise UnreadableAttention(
                    f"{name} attends with {kind}, which cannot be read: expected {' or '.join(processors)}. "
                    f"Give it back what it is loaded with (disable_xformers_memory_efficient_attention, "
                    f"disable_attention_slicing, unload_ip_adapter, or pipeline.{part}.set_attn_processor"
                    f"({processors[0]}())), then record."
                )
            backend = getattr(processor, "_attention_backend", None) or _active_backend(processor)
            backend = str(getattr(backend, "value", backend))
            if not backend.removeprefix("_").startswith("native") or backend in ("_native_npu", "_native_xla"):
                raise UnreadableAttention(
                    f"{name} attends on the backend {backend!r}, which keeps its softmax to itself: call "
                    'pipeline.transformer.set_attention_backend("native") (and unset DIFFUSERS_ATTN_BACKEND) first.'
                )
            if getattr(processor, "_parallel_config", None) is not None:
                raise UnreadableAttention(f"{name} is split over several devices, which cannot be read: run it on one")

    return check


def _active_backend(processor) -> Any:
    """The backend of processors that leave the choice to diffusers."""
    if not hasattr(processor, "_attention_backend"):
        return "native"
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry.get_active_backend()[0]


# --- the families ---


def _class_is(*names: str) -> Callable[[Any], bool]:
    def knows(model) -> bool:
        return any(one.__name__ in names and one.__module__.startswith("diffusers.") for one in type(model).__mro__)

    return knows


def _row(name: str, *classes: str, **own) -> Family:
    """What all pipelines have in common, and a family's own."""
    common: dict[str, Any] = {
        "encode_prompt": "encode_prompt",
        "sample": "__call__",
        "evaluate": None,
        "scheduler": "scheduler",
        "denoiser": "transformer",
        "inputs": ("hidden_states", "encoder_hidden_states"),
        "text": "encoder_hidden_states",
        "self_sites": (),
        "rows": ("uncond", "cond"),
        "encoder": "text_encoder",
        "ids": "input_ids",
        "embeddings": "",
        "layers": None,
        "attention": "self_attn",
        "text_rows": lambda text: list(text.unbind()),
        "step": _step,
        "times": lambda scheduler: [*scheduler.timesteps.tolist(), 0.0],
        "evaluated": None,
        "factor": lambda pipeline: pipeline.vae_scale_factor * 2,
        "blank": None,
        "pictures": _pictures,
        "about": _about,
        "read": ("text_encoder",),
    }
    return Family(name=name, knows=_class_is(*classes), **{**common, **own})


CLIP = {"embeddings": "text_encoder.embeddings", "layers": "text_encoder.encoder.layers"}
UNET: dict[str, Any] = {
    "denoiser": "unet",
    "inputs": ("sample", "encoder_hidden_states"),
    "cross_sites": ("unet.*.attn2",),
    "self_sites": ("unet.*.attn1",),
    "scene": _unet_scene,
    "check": readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    "factor": lambda pipeline: pipeline.vae_scale_factor,
}

STABLE_DIFFUSION = _row(
    "stable-diffusion",
    "StableDiffusionPipeline",
    texts=_in_one_call([Part()], _unbound),
    **UNET,
    **CLIP,
)

SDXL = _row(
    "stable-diffusion-xl",
    "StableDiffusionXLPipeline",
    read=("text_encoder", "text_encoder_2"),
    texts=_in_one_call([Part(("text_encoder", "text_encoder_2"))], _unbound),
    **UNET,
    **CLIP,
)

SD3 = _row(
    "stable-diffusion-3",
    "StableDiffusion3Pipeline",
    read=("text_encoder", "text_encoder_2", "text_encoder_3"),
    texts=_in_one_call(
        [Part(("text_encoder", "text_encoder_2")), Part(("text_encoder_3",), ("prompt_3", "prompt"))], _unbound
    ),
    cross_sites=("transformer.transformer_blocks.*.attn",),
    scene=_sd3_scene,
    check=readable("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
    factor=lambda pipeline: pipeline.vae_scale_factor * pipeline.patch_size,
    **CLIP,
)

FLUX = _row(
    "flux",
    "FluxPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "img_ids"),
    rows=("cond", "uncond"),
    read=("text_encoder_2",),
    encoder="text_encoder_2",
    texts=_in_two_calls([Part(("text_encoder_2",), ("prompt_2", "prompt"))], lambda said: said.result[0].unbind()),
    cross_sites=("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    scene=_flux_scene,
    check=readable("FluxAttnProcessor"),
    picture=unpacked,
)


def _chat_template(thinking: bool) -> Callable[[Any], tuple[str, str]]:
    """What Qwen3's template puts around a user's words."""

    def template(pipeline) -> tuple[str, str]:
        message = [{"role": "user", "content": SENTINEL}]
        before, _, after = pipeline.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        ).partition(SENTINEL)
        return before, after

    return template


FLUX2_KLEIN = _row(
    "flux-2-klein",
    "Flux2KleinPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "img_ids"),
    rows=("cond", "uncond"),
    texts=_in_two_calls([Part(template=_chat_template(thinking=False))], lambda said: said.result[0].unbind()),
    cross_sites=("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    scene=_flux_scene,
    check=readable("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor"),
    picture=unpacked,
    embeddings="text_encoder.model.embed_tokens",
    layers="text_encoder.model.layers",
)


def _z_image_states(said: Said) -> tuple:
    """`encode_prompt` gives each prompt once; the pipeline repeats it for each of its pictures."""
    count = said.drawing.get("num_images_per_prompt") or 1
    positive, negative = ([one for one in some for _ in range(count)] for some in said.result)
    return positive, negative


def _z_image_given(arguments: Mapping[str, Any]) -> dict[str, list[Encoded]]:
    """Ready-made embeddings go past `encode_prompt`."""
    count = arguments.get("num_images_per_prompt") or 1
    found = {"cond": arguments.get("prompt_embeds"), "uncond": arguments.get("negative_prompt_embeds")}
    return {
        branch: [Encoded(None, (), tuple(_numbered(0, len(one), BLOCK)), one) for one in some for _ in range(count)]
        for branch, some in found.items()
        if some
    }


Z_IMAGE = _row(
    "z-image",
    "ZImagePipeline",
    inputs=("x", "cap_feats"),
    text="cap_feats",
    rows=("cond", "uncond"),
    texts=_in_one_call([Part(kept="real", template=_chat_template(thinking=True))], _z_image_states, BLOCK),
    cross_sites=("transformer.layers.*.attention",),
    scene=_z_image_scene,
    given=_z_image_given,
    check=readable("ZSingleStreamAttnProcessor"),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
)


def _own_scene(model, inputs: Mapping[str, Any]) -> Scene:
    return _z_image_scene(model, {"x": inputs["latents"], "cap_feats": inputs["texts"]})


def _own_step(step: Callable, arguments: Mapping[str, Any]) -> Stepped:
    latents = step(**arguments)
    return Stepped(latents, latents, None)


def _own_evaluated(velocity: Tensor, arguments: Mapping[str, Any]) -> Stepped:
    return Stepped(velocity, arguments["latents"], None)


OWN_Z_IMAGE = replace(
    Z_IMAGE,
    name="z-image, our own",
    knows=lambda model: getattr(model, "name", None) == "z-image",
    sample="sample",
    evaluate="denoise",
    inputs=("latents", "texts"),
    text="texts",
    text_rows=list,
    texts=_in_one_call(
        [Part(kept="real", template=_chat_template(thinking=True))],
        lambda said: tuple(None if one is None else list(one.states) for one in said.result),
        BLOCK,
    ),
    scene=_own_scene,
    step=_own_step,
    times=lambda scheduler: scheduler.times.tolist(),
    evaluated=_own_evaluated,
    factor=lambda model: model.factor * 2,
    pictures=lambda result: result if isinstance(result, list) else [result],
    check=lambda model, sites: None,
    about=lambda model, arguments: {
        **{name: arguments.get(name) for name in ("guidance", "seed")},
        "sampler": type(model.scheduler).__name__,
    },
)


def _pixart_states(said: Said) -> tuple:
    positive, mask, negative, negative_mask = said.result
    return masked(positive, mask), None if negative is None else masked(negative, negative_mask)


PIXART = _row(
    "pixart",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    texts=_in_one_call([Part(kept="real")], _pixart_states),
    cross_sites=("transformer.transformer_blocks.*.attn2",),
    self_sites=("transformer.transformer_blocks.*.attn1",),
    scene=_patched_scene,
    check=readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    factor=lambda pipeline: pipeline.vae_scale_factor * pipeline.transformer.config.patch_size,
)


def _qwen_image_template(pipeline) -> tuple[str, str]:
    before, _, after = pipeline.prompt_template_encode.format(SENTINEL).partition(SENTINEL)
    return before, after


QWEN_IMAGE = _row(
    "qwen-image",
    "QwenImagePipeline",
    inputs=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"),
    rows=("cond", "uncond"),
    texts=_in_two_calls(
        [
            Part(
                kept="real",
                dropped=lambda pipeline: pipeline.prompt_template_encode_start_idx,
                template=_qwen_image_template,
            )
        ],
        lambda said: masked(*said.result),
    ),
    cross_sites=("transformer.transformer_blocks.*.attn",),
    scene=_qwen_image_scene,
    check=readable("QwenDoubleStreamAttnProcessor2_0"),
    picture=unpacked,
)

PIPELINES = (STABLE_DIFFUSION, SDXL, SD3, FLUX, Z_IMAGE, OWN_Z_IMAGE, PIXART, QWEN_IMAGE, FLUX2_KLEIN)
