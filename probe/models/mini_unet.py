"""mini-unet: text encoder, U-Net and VAE joined into one text-to-image model that runs on a CPU in seconds.

The design that the article under test describes, in small: byte-level BPE, 77 tokens, a bidirectional encoder, a latent
U-Net with cross-attention, classifier-free guidance. Weights are trained by `python -m toushi.experiments.training.train_mini_unet`.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict, Unpack, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.cpu_threads import with_own_threads
from toushi.probe.models.dit import DiTConfig
from toushi.probe.models.low_rank import merge_updates
from toushi.probe.models.prompt_batch import PromptBatch, concat_prompts, pad_ids
from toushi.probe.models.samplers import Scheduler
from toushi.probe.models.text_encoder import TextEncoder, TextEncoderConfig
from toushi.probe.models.unet import UNet, UNetConfig
from toushi.probe.models.vae import VAE, VAEConfig
from toushi.probe.text.alignment import join_words
from toushi.probe.text.bpe import Tokenizer

SHIPPED = Path(__file__).parent / "weights"
MAX_PIXELS = 1024 * 1024  # above it one evaluation takes minutes and gigabytes


class PromptCut(UserWarning):
    """A prompt had more tokens than the model reads; the message names the words that were lost.

    `limit` and `lost` are the number of tokens that are read and the words that were cut, for messages in another
    language. None and () where they are not known.
    """

    def __init__(self, message: str, limit: int | None = None, lost: Sequence[str] = ()):
        super().__init__(message)
        self.limit, self.lost = limit, tuple(lost)


class HeatMapRule(TypedDict):
    """Which sites' maps point best, as the model card measured: globs, and the rule in words."""

    sites: list[str]
    rule: str


class SharedParts(TypedDict):
    """The shipped model whose tokenizer this one uses, and the SHA-256 of the parts (`encoder`, `unet`, `vae`) that it
    takes from there. Its own file holds the other parts whole, and updates of these (see `low_rank`)."""

    model: str
    parts: dict[str, str]


class SamplingOptions(TypedDict, total=False):
    """The options of `MiniUNet.sample`."""

    steps: int
    guidance: float
    sampler: str
    size: int | tuple[int, int]
    seed: int | Sequence[int]
    latents: Tensor | None
    first_step: int
    callback: Callable[[int, Tensor], None] | None


@dataclass(frozen=True)
class MiniUNetConfig:
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    dit: DiTConfig | None = None
    """A single-stream Transformer in place of the U-Net: the model is a `MiniDiT`."""
    shift: float = 1.5
    steps: int = 20
    """How many steps `sample` takes if it is not told."""
    guidance: float = 3.0
    """The guidance of `sample` if it is not told; 1 is none."""
    heat_map: HeatMapRule | None = None
    """None is the mean of all sites."""
    shares: SharedParts | None = None

    def save(self, folder: Path) -> None:
        """Writes config.json."""
        (folder / "config.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def from_json(cls, content: str) -> "MiniUNetConfig":
        """The config of a config.json that `save` wrote."""
        values = json.loads(content)
        unet = UNetConfig(**values["unet"] | {"widths": tuple(values["unet"]["widths"])})
        parts = {"text": TextEncoderConfig(**values["text"]), "unet": unet, "vae": VAEConfig(**values["vae"])}
        if values.get("dit") is not None:
            parts["dit"] = DiTConfig.from_released(values["dit"])
        return cls(**values | parts)


class MiniUNet(nn.Module):
    name = "mini-unet"
    unguided = 1.0  # `guidance` at which there is none
    threads: int | None = 1  # CPU threads of `sample`, `denoise` and `encode_prompt`; None: as many as torch takes

    def __init__(self, config: MiniUNetConfig, tokenizer: Tokenizer):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.encoder = TextEncoder(config.text)
        self.add_denoiser()
        self.vae = VAE(config.vae)
        self.scheduler = Scheduler(config.shift)
        self.embedding_cache: dict[str, PromptBatch] = {}
        # Whether a hook reads or changes a module, so that it has to run. Without this function no text is reused.
        self.is_watched: Callable[[nn.Module], bool] | None = None
        self.register_load_state_dict_post_hook(lambda model, _: model.embedding_cache.clear())
        self.revision = "unsaved"
        self.weights_sha256: str | None = None

    # --- the denoiser: what `MiniDiT` has otherwise ---

    def add_denoiser(self) -> None:
        self.unet = UNet(self.config.unet)

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    def read_text(self, text: PromptBatch) -> PromptBatch:
        """The same prompts with what the denoiser needs of them at every step."""
        return self.unet.read_text(text)

    def velocity(
        self, latents: Float[Tensor, "b c h w"], times: Float[Tensor, " b"], text: PromptBatch
    ) -> Float[Tensor, "b c h w"]:
        """Noise minus picture, in latent units, from one evaluation. `times` are 1 at noise and 0 at the picture."""
        return self.unet(latents, times, text)

    @property
    def heat_map(self) -> HeatMapRule | None:
        return self.config.heat_map

    @property
    def default_steps(self) -> int:
        return self.config.steps

    @property
    def default_guidance(self) -> float:
        return self.config.guidance

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    # --- text ---

    def encode_text(self, prompts: Sequence[str]) -> PromptBatch:
        """States of the prompts, padded to the longest. Warns (PromptCut) of words that were cut.

        Where `is_watched` is given, prompts that were encoded before come from a cache.
        """
        key = json.dumps([list(prompts), str(self.device), str(self.dtype)], ensure_ascii=False)
        encodings = [self.tokenizer.encode(prompt) for prompt in prompts]
        for encoding in encodings:
            if encoding.lost:
                cut = f"the prompt is longer than {self.tokenizer.length} tokens; cut: {join_words(encoding.lost)}"
                lost = [word.text for word in encoding.lost]
                warnings.warn(PromptCut(cut, self.tokenizer.length, lost), stacklevel=3)
        reuse = self.is_watched is not None and not self.is_watched(self.encoder)
        if reuse and key in self.embedding_cache:
            return self.embedding_cache[key]
        ids, mask = pad_ids(encodings, self.tokenizer.pad, self.device)
        text = PromptBatch(self.encoder(ids, mask), mask, tuple(encodings))
        if not reuse:
            return text
        if len(self.embedding_cache) >= 64:
            self.embedding_cache.pop(next(iter(self.embedding_cache)))
        self.embedding_cache[key] = text
        return text

    @with_own_threads
    def encode_prompt(
        self, prompts: Sequence[str], negatives: Sequence[str] | None
    ) -> tuple[PromptBatch, PromptBatch | None]:
        """The encoded prompts and negative prompts; without guidance there are no negative prompts (None)."""
        return self.encode_text(prompts), None if negatives is None else self.encode_text(negatives)

    # --- pictures ---

    @overload
    def sample(self, prompt: str, negative: str = "", **options: Unpack[SamplingOptions]) -> Image.Image: ...

    @overload
    def sample(
        self, prompt: Sequence[str], negative: str = "", **options: Unpack[SamplingOptions]
    ) -> list[Image.Image]: ...

    @with_own_threads
    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str = "euler",
        size: int | tuple[int, int] = 64,
        seed: int | Sequence[int] = 0,
        latents: Float[Tensor, "b c h w"] | None = None,
        first_step: int = 0,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """The picture of a prompt, or a list of pictures for several prompts, which run in one batch.

        `negative` is the negative prompt. `seed` is for every picture, or one for each prompt. `latents`, in place of
        noise, are where the run begins at `first_step`. `size` is in pixels, one number or (height, width), multiples
        of 16. Without `steps` and `guidance` the model's own are taken. `guidance` of 1 is none: the negative prompt is
        not evaluated. `callback(index, latents)` is called after each step. Raises ToushiError for sizes, numbers and
        steps that do not fit.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ToushiError("expected at least one prompt, but the list is empty")
        steps = self.default_steps if steps is None else steps
        guidance = self.default_guidance if guidance is None else guidance
        if not 0 <= first_step <= steps:
            raise ToushiError(f"first_step must lie in 0..{steps}, the number of steps, but {first_step} came")
        noise = self.noise(len(prompts), *checked_size(size), seed)
        if latents is not None and latents.shape != noise.shape:
            raise ToushiError(f"expected latents of shape {tuple(noise.shape)}, but {tuple(latents.shape)} came")
        guided = guidance != self.unguided
        positive, negative_text = self.encode_prompt(prompts, [negative] * len(prompts) if guided else None)
        text = positive if negative_text is None else concat_prompts(negative_text, positive)
        text = self.read_text(text)

        def velocity_of(latents: Tensor, time: float) -> Tensor:
            rows = torch.cat([latents, latents]) if guided else latents
            times = torch.full((len(rows),), time, device=self.device)
            velocity = self.velocity(rows.to(self.dtype), times, text).float()
            if not guided:
                return velocity
            uncond, cond = velocity.chunk(2)
            return uncond + guidance * (cond - uncond)

        latents = noise if latents is None else latents.to(noise)
        self.scheduler.set_timesteps(steps, sampler)
        for index in range(first_step, steps):
            latents = self.scheduler.step(velocity_of, latents, index)
            if callback is not None:
                callback(index, latents)
        pictures = to_images(self.decode(latents))
        return pictures[0] if isinstance(prompt, str) else pictures

    def noise(self, count: int, height: int, width: int, seed: int | Sequence[int]) -> Float[Tensor, "{count} c h w"]:
        """Initial latents in fp32, made on the CPU so that a seed gives the same on every device. Sizes are in pixels."""
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ToushiError(f"expected one seed, or one for each of {count} prompts, but {len(seeds)} came")
        shape = (self.config.vae.latent_channels, height // self.vae.factor, width // self.vae.factor)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.device)

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Float[Tensor, "1 c h w"]:
        """Latents of a picture, in fp32. Raises ToushiError for a size that the model cannot draw."""
        checked_size((image.height, image.width))
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return self.vae.encode(pixels.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in -1..1 (not clamped) from latents."""
        return self.vae.decode(latents.to(self.device, self.dtype))

    @with_own_threads
    @torch.no_grad()
    def denoise(
        self, latents: Float[Tensor, "b c h w"], time: float | Float[Tensor, "..."], prompt: str | Sequence[str]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity from one evaluation without guidance. One prompt serves the whole batch.

        `time` is 1 at noise and 0 at the picture, one number or one for each row.
        """
        prompts = [prompt] * len(latents) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(latents):
            raise ToushiError(f"expected one prompt for each of {len(latents)} latents, but {len(prompts)} came")
        text, _ = self.encode_prompt(prompts, None)
        times = torch.as_tensor(time, dtype=torch.float32, device=self.device).expand(len(latents))
        return self.velocity(latents.to(self.device, self.dtype), times, self.read_text(text))

    # --- disk ---

    def save(self, folder: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Writes config.json, tokenizer.json and model.safetensors, the weights in `dtype`, without shared parts."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.to("cpu", dtype).contiguous() for name, weight in self.state_dict().items()}
        config = self.config
        if config.shares is None:
            self.tokenizer.save(folder / "tokenizer.json")
        else:  # a part that is another by now is written whole
            stored = {name: weight.half() for name, weight in weights.items()}
            parts = {k: sha for k, sha in config.shares["parts"].items() if weights_sha256(part_of(stored, k)) == sha}
            config = replace(config, shares={"model": config.shares["model"], "parts": parts})
            weights = {name: weight for name, weight in weights.items() if name.partition(".")[0] not in parts}
        config.save(folder)
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def from_folder(cls, folder: Path | str) -> "MiniUNet":
        """The model of a folder that `save` wrote, in fp32 on the CPU. Raises ValueError where a shared part is another
        than it was."""
        folder = Path(folder)
        config = MiniUNetConfig.from_json((folder / "config.json").read_text("utf-8"))
        source = folder if config.shares is None else SHIPPED / config.shares["model"]
        with torch.random.fork_rng(devices=[]):  # the meta device would need no numbers, but a second to import
            model = cls(config, Tokenizer.load(source / "tokenizer.json"))
        weights = load_file(folder / "model.safetensors")
        if config.shares is not None:
            lent, shared = load_file(source / "model.safetensors"), {}
            for part, sha256 in config.shares["parts"].items():
                shared |= part_of(lent, part)
                if (came := weights_sha256(part_of(lent, part))) != sha256:
                    raise ValueError(
                        f"it was trained with another {part} than that of {config.shares['model']}: "
                        f"{sha256[:12]}, not {came[:12]}"
                    )
            weights = merge_updates(shared, weights)
        model.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        model.weights_sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        model.revision = model.weights_sha256[:12]
        return model.eval().requires_grad_(False)

    @classmethod
    def tiny(cls, seed: int = 0, layers: int = 12) -> "MiniUNet":
        """The same design, narrow and untrained, for tests; layers counts the encoder's."""
        texts = [
            "左边是猫，右边是月亮，夜晚",
            "河边的银行在左边，树在右边",
            "a red circle and a blue square",
            "一只猫头鹰",
        ]
        config = MiniUNetConfig(
            text=TextEncoderConfig(vocab_size=300, width=32, layers=layers, heads=2),
            unet=UNetConfig(widths=(32, 32, 64), head_width=16, text_width=32, time_width=32),
            vae=VAEConfig(encoder_width=16, width=16, fine_width=8),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config, Tokenizer.train(texts, config.text.vocab_size))
            # Untrained output layers are zero, and then the output would not depend on the input.
            for parameter in model.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
        return model.eval().requires_grad_(False)


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of the encoder, the U-Net or the VAE."""
    return {name: weight for name, weight in weights.items() if name.startswith(f"{part}.")}


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {list(weights[name].shape)} ".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels. Raises ToushiError for a size that the model cannot draw."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 16 or width < 16 or height % 16 or width % 16:
        raise ToushiError(f"height and width must be multiples of 16 pixels, at least 16, but {height}x{width} came")
    if height * width > MAX_PIXELS:
        raise ToushiError(
            f"this model draws up to 1024x1024 pixels, but {height}x{width} came; it was trained at 64x64"
        )
    return height, width


def to_images(pictures: Float[Tensor, "b 3 H W"]) -> list[Image.Image]:
    """Pictures in -1..1, clamped, as images."""
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).cpu().numpy()]
