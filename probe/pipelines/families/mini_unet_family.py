"""mini-unet and its twins: a latent U-Net with cross-attention to one text encoder, and our own sampler.

Text: byte-level BPE and a Transformer encoder. `encode_prompt` returns the prompts and, with guidance, the negative
prompts. Each has its encodings, so tokens and spans are known without reading ids. A mask keeps padding out of the
attention, so the columns are the real tokens.
Image: every cell of the latents is a query, on the latents' own grid and on coarser ones. All keys are text.
Sampling: `scheduler.step` gets the model as a function and evaluates it once, with Heun twice. `denoise` evaluates it
without a scheduler. The velocity predicts the denoised latents, so traces of this family have previews.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from toushi.probe.models.mini_unet import MiniUNet, checked_size
from toushi.probe.models.prompt_batch import PromptBatch
from toushi.probe.models.samplers import VelocityFunction
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    Family,
    PromptTokens,
    SchedulerStep,
)


def _encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    positive, negative = call.result
    texts = {"cond": positive} if negative is None else {"cond": positive, "uncond": negative}
    return {
        branch: [
            EncodedPrompt(encoding.prompt, encoding.ids, encoding.tokens, states, encoding.cut)
            for encoding, states in zip(text.encodings, _real_columns(text))
        ]
        for branch, text in texts.items()
    }


def _tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
    branch, prompts = (("cond", call.arguments["prompts"]), ("uncond", call.arguments["negatives"]))[index]
    encodings = map(call.model.tokenizer.encode, prompts)
    return branch, [
        PromptTokens(encoding.prompt, encoding.ids, encoding.tokens, encoding.cut) for encoding in encodings
    ]


def _real_columns(text: PromptBatch) -> list[Tensor]:
    return [states[mask] for states, mask in zip(text.states, text.mask)]


def _read_inputs(model: MiniUNet, inputs: Arguments) -> DenoiserInputs:
    latents, text = inputs["latents"], inputs["text"]
    return DenoiserInputs((latents.shape[-2], latents.shape[-1]), (text.states,), lambda: _real_columns(text))


def _step(step: Callable[[VelocityFunction, Tensor, int], Tensor], arguments: Arguments) -> SchedulerStep:
    denoised: list[Tensor] = []
    model_velocity = arguments["velocity_of"]

    def velocity_of(latents: Tensor, time: float) -> Tensor:
        velocity = model_velocity(latents, time)
        if not denoised:  # Heun evaluates a second time, at the next time
            denoised.append(latents - time * velocity)
        return velocity

    after = step(velocity_of, arguments["latents"], arguments["index"])
    return SchedulerStep(after, after, denoised[0])


def _evaluation_step(velocity: Tensor, arguments: Arguments) -> SchedulerStep:
    latents, time = arguments["latents"], arguments["time"]
    time = time.reshape(-1, 1, 1, 1).to(latents) if isinstance(time, Tensor) else time
    return SchedulerStep(velocity, latents, latents - time * velocity.to(latents))


def _metadata(model: MiniUNet, arguments: Arguments) -> dict[str, object]:
    settings: dict[str, object] = {name: arguments.get(name) for name in ("guidance", "sampler", "seed")}
    if settings["guidance"] is None and "seed" in arguments:  # `denoise` has neither
        settings["guidance"] = model.default_guidance
    return settings


MINI_UNET = Family(
    name="mini-unet",
    matches=lambda model: isinstance(model, MiniUNet),  # whatever its weights are called
    sample="sample",
    evaluate="denoise",
    denoiser="unet",
    denoiser_inputs=("latents", "text"),
    cross_attention=("unet.*cross_attention",),
    self_attention=("unet.*self_attention",),
    text_encoder="encoder",
    input_ids="ids",
    embeddings="encoder.embed",
    layers="encoder.layers",
    layer_attention="attention",
    encoded_prompts=_encoded_prompts,
    tokens_of_encoder_call=_tokens_of_encoder_call,
    read_inputs=_read_inputs,
    step=_step,
    timesteps=lambda scheduler: scheduler.times.tolist(),
    evaluation_step=_evaluation_step,
    cell_pixels=lambda model: model.vae.factor,
    blank_latents=lambda model, size: torch.zeros_like(model.noise(1, *checked_size(size), seed=0)),
    images=lambda result: result if isinstance(result, list) else [result],
    metadata=_metadata,
)
