"""Z-Image as released, from prompt to picture: Qwen3 encodes, the single-stream DiT denoises, a VAE decodes.

The language model and the VAE are those of transformers and diffusers. Parts have the released pipeline's names, so a
site has the same name in both. Time is 1 at noise and 0 at the picture, as in this project's other models. The DiT
counts the other way, and its velocity has the opposite sign.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Model

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.dit import PATCH, DiT, DiTConfig
from toushi.probe.models.mini_unet import PromptCut, to_images
from toushi.probe.models.samplers import Scheduler

MAX_TOKENS = 512  # tokens that are read, with those of the chat template


class EncodedPrompts(NamedTuple):
    """Prompts with the ids and states of each in its chat template, cut but without padding."""

    prompts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    states: tuple[Float[Tensor, "token feature"], ...]


def guided_velocity(
    cond: Float[Tensor, "b c h w"], uncond: Float[Tensor, "b c h w"], guidance: float, normalisation: float = 0.0
) -> Float[Tensor, "b c h w"]:
    """The velocity of `cond` moved away from `uncond`. 0 is no guidance, where it is usually 1.

    A `normalisation` above 0 limits the norm of each row to that many times the norm of its `cond`.
    """
    guided = cond + guidance * (cond - uncond)
    if not normalisation:
        return guided
    norm, cond_norm = (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) for v in (guided, cond))
    return guided * (normalisation * cond_norm / norm).clamp(max=1)


def released_times(steps: int, shift: float) -> Float[Tensor, " {steps}+1"]:
    """`shifted_times` in single precision, rounded as in the released scheduler.

    The DiT computes the cosine of 1000 times the time, so the last bit matters: 6e-5 in the latents after five steps.
    """
    times = torch.linspace(1, 1 / steps, steps, dtype=torch.float32)
    return torch.cat([shift * times / (1 + (shift - 1) * times), torch.zeros(1)])


class ReleasedScheduler(Scheduler):
    """A `Scheduler` with the times of the released one."""

    def set_timesteps(self, steps: int, sampler: str = "euler") -> None:
        super().set_timesteps(steps, sampler)
        self.times = released_times(steps, self.shift)


def first_step(steps: int, strength: float) -> int:
    """The first step of a run that begins from a picture. Strength 1 begins from noise, at step 0."""
    if not 0 < strength <= 1:
        raise ToushiError(f"strength must be above 0 and at most 1, but {strength} came")
    return int(steps - steps * strength)


class ZImage(nn.Module):
    name = "z-image"
    unguided = 0.0  # `guidance` at which there is none
    default_steps, default_guidance = 8, 0.0  # of Turbo
    name_or_path: str | None = None

    def __init__(
        self,
        transformer: DiT,
        text_encoder: Qwen3Model,
        tokenizer: PreTrainedTokenizerBase,
        vae: AutoencoderKL,
        shift: float = 3.0,
    ):
        super().__init__()
        self.transformer, self.text_encoder, self.vae = transformer, text_encoder, vae
        self.tokenizer = tokenizer
        self.scheduler = ReleasedScheduler(shift)
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)  # pixels per latent cell, each way
        self.execution_device: torch.device | None = (
            None  # where it computes, if an offload keeps its weights elsewhere
        )

    @property
    def device(self) -> torch.device:
        return self.execution_device or self.transformer.x_pad_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.x_pad_token.dtype

    # --- text ---

    def encode_text(self, prompts: Sequence[str]) -> EncodedPrompts:
        """The states before the language model's last layer, of each prompt as a user's turn of a chat.

        Warns (PromptCut) of text beyond MAX_TOKENS.
        """
        ids = []
        for prompt in prompts:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            assert isinstance(text, str)  # because of tokenize=False
            tokens = self.tokenizer(text).input_ids
            if len(tokens) > MAX_TOKENS:
                lost = self.tokenizer.decode(tokens[MAX_TOKENS:])
                warnings.warn(
                    PromptCut(f"the prompt and its template are longer than {MAX_TOKENS} tokens; cut: {lost!r}"),
                    stacklevel=3,
                )
            ids.append(tuple(tokens[:MAX_TOKENS]))
        # The model is causal, so pads on the right change nothing; the released pipeline always pads to 512.
        rows = pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(self.device)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in ids], batch_first=True).to(rows.device)
        output = self.text_encoder(input_ids=rows, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states = [row[: len(row_ids)] for row, row_ids in zip(output.hidden_states[-2], ids)]
        return EncodedPrompts(tuple(prompts), tuple(ids), tuple(states))

    def encode_prompt(
        self, prompt: Sequence[str], negative_prompt: Sequence[str] | None
    ) -> tuple[EncodedPrompts, EncodedPrompts | None]:
        """The encoded prompts and negative prompts; without guidance there are no negative prompts (None)."""
        return self.encode_text(prompt), None if negative_prompt is None else self.encode_text(negative_prompt)

    # --- pictures ---

    def velocity(
        self,
        latents: Float[Tensor, "b c h w"],
        time: float | Float[Tensor, "..."],
        states: Sequence[Float[Tensor, "_token feature"]],
    ) -> Float[Tensor, "b c h w"]:
        """Noise minus picture, in fp32. `time` is 1 at noise, one number or one for each row."""
        times = torch.as_tensor(time, dtype=torch.float32, device=self.device).expand(len(latents))
        times = (1000 - times * 1000) / 1000  # not 1 - times: see `released_times`
        states = [state.to(self.device, self.dtype) for state in states]
        return -self.transformer(latents.to(self.device, self.dtype), times, states).float()

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        steps: int = default_steps,
        guidance: float = default_guidance,
        normalisation: float = 0.0,
        truncation: float = 1.0,
        size: int | tuple[int, int] | None = None,
        seed: int | Sequence[int] = 0,
        image: Image.Image | None = None,
        strength: float = 0.6,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """The picture of a prompt, or a list of pictures for several prompts, which run in one batch.

        The defaults are those of the Turbo weights; the Base weights need 28 to 50 steps and `guidance` of 3 to 5.
        `guidance` and `normalisation` are those of `guided_velocity`: 0 is none. Guidance ends where time is below
        1 - `truncation`. `size` is in pixels, one number or (height, width); 1024 by default. With an `image` the run
        begins from it, at its size, with the share `strength` of noise. `seed` is for every picture, or one for each
        prompt. `callback(index, latents)` is called after each step. Raises ToushiError for sizes and numbers that do
        not fit.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ToushiError("expected at least one prompt, but the list is empty")
        first = 0 if image is None else first_step(steps, strength)
        self.scheduler.set_timesteps(steps)
        latents = self.initial_latents(len(prompts), size, seed, image, self.scheduler.times[first].item())
        positive, negative_text = self.encode_prompt(prompts, [negative] * len(prompts) if guidance > 0 else None)

        def velocity_of(latents: Tensor, time: float) -> Tensor:
            if negative_text is None or 1 - time > truncation:
                return self.velocity(latents, time, positive.states)
            both = self.velocity(torch.cat([latents, latents]), time, positive.states + negative_text.states)
            cond, uncond = both.chunk(2)
            return guided_velocity(cond, uncond, guidance, normalisation)

        for index in range(first, steps):
            latents = self.scheduler.step(velocity_of, latents, index)
            if callback is not None:
                callback(index, latents)
        pictures = to_images(self.decode(latents))
        return pictures[0] if isinstance(prompt, str) else pictures

    def initial_latents(
        self,
        count: int,
        size: int | tuple[int, int] | None,
        seed: int | Sequence[int],
        image: Image.Image | None,
        time: float,
    ) -> Float[Tensor, "b c h w"]:
        """Noise, or an image's latents with the noise of a time; in fp32, made on the CPU as that of mini-unet."""
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ToushiError(f"expected one seed, or one for each of {count} prompts, but {len(seeds)} came")
        if image is not None and size is not None:
            raise ToushiError("the size is the image's; resize the image instead of giving a size")
        height, width = self.checked_size((image.height, image.width) if image is not None else size or 1024)
        shape = (1, self.transformer.config.in_channels, height // self.factor, width // self.factor)
        rows = []
        for generator in (torch.Generator().manual_seed(seed) for seed in seeds):
            # The released pipeline samples the VAE before the noise; another order would change what a seed gives.
            clean = self.encode(image, generator) if image is not None else None
            noise = torch.randn(shape, generator=generator).to(self.device)
            rows.append(noise if clean is None else time * noise + (1 - time) * clean)
        return torch.cat(rows)

    def checked_size(self, size: int | tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels. Raises ToushiError for a size that the model cannot draw."""
        height, width = (size, size) if isinstance(size, int) else size
        unit = self.factor * PATCH
        if height < unit or width < unit or height % unit or width % unit:
            raise ToushiError(f"height and width must be multiples of {unit} pixels, but {height}x{width} came")
        return height, width

    @torch.no_grad()
    def encode(self, image: Image.Image, generator: torch.Generator | None = None) -> Float[Tensor, "1 c h w"]:
        """Latents of a picture: a sample of the VAE's posterior, or its mean without a generator."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        (posterior,) = self.vae.encode(pixels.to(self.device, self.vae.dtype), return_dict=False)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return ((latents.float() - self.vae.config["shift_factor"]) * self.vae.config["scaling_factor"]).to(self.device)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in -1..1 (not clamped) from latents."""
        latents = latents.to(self.device, self.vae.dtype) / self.vae.config["scaling_factor"]
        return self.vae.decode(latents + self.vae.config["shift_factor"], return_dict=False)[0]

    @torch.no_grad()
    def denoise(
        self, latents: Float[Tensor, "b c h w"], time: float | Float[Tensor, "..."], prompt: str | Sequence[str]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity from one evaluation without guidance. One prompt serves the whole batch."""
        prompts = [prompt] * len(latents) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(latents):
            raise ToushiError(f"expected one prompt for each of {len(latents)} latents, but {len(prompts)} came")
        text, _ = self.encode_prompt(prompts, None)
        return self.velocity(latents, time, text.states)

    # --- disk ---

    @classmethod
    def from_folder(cls, folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> "ZImage":
        """The model of a folder in the released layout, on the CPU. Raises ToushiError for another design."""
        folder = Path(folder)
        schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        if schedule.get("use_dynamic_shifting"):
            raise ToushiError("expected a schedule with a fixed shift, but use_dynamic_shifting is on")
        config = json.loads((folder / "transformer" / "config.json").read_text())
        with torch.device("meta"):
            transformer = DiT(DiTConfig.from_released(config))
        load_weights(transformer, folder / "transformer", dtype)
        model = cls(
            transformer,
            Qwen3Model.from_pretrained(folder / "text_encoder", dtype=dtype, local_files_only=True),
            AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True, torch_dtype=dtype),
            schedule["shift"],
        )
        model.name_or_path = str(folder)  # as pipelines have it: traces note by it which weights were used
        return model.eval().requires_grad_(False)


def load_weights(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Fills a module that was built on the meta device, file by file and tensor by tensor.

    The released files hold fp32, twice what the model takes in bf16. At most one tensor is in memory in both. Raises
    ToushiError for weights that are missing or unknown.
    """
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    files = {"diffusion_pytorch_model.safetensors"}
    if index.is_file():
        files = set(json.loads(index.read_text())["weight_map"].values())
    missing = set(module.state_dict())
    for file in sorted(files):
        with safe_open(folder / file, framework="pt") as tensors:
            weights = {name: tensors.get_tensor(name).to(dtype) for name in tensors.keys()}  # noqa: SIM118
        unknown = set(weights) - set(module.state_dict())
        if unknown:
            raise ToushiError(
                f"{folder / file} has weights that the model does not know: {', '.join(sorted(unknown)[:3])}"
            )
        module.load_state_dict(weights, strict=False, assign=True)
        missing -= set(weights)
    if missing:
        raise ToushiError(
            f"{folder} lacks {len(missing)} weights of the model, among them {', '.join(sorted(missing)[:3])}"
        )
