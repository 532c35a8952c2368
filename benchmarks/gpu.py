"""What recording costs on a GPU, and whether it is exact there: the released architectures at full size, random weights.

    python -m benchmarks gpu                  # kernels, then SDXL, FLUX.1 and Z-Image in bf16, about six minutes
    python -m benchmarks gpu --only flux      # one of kernels, sdxl, flux, z-image
    python -m benchmarks gpu --small          # toy sizes, on a CPU too: only whether it runs

Each row is printed and written to `runs/benchmarks-gpu.jsonl` when it is known, so a run that is cut off keeps what it
had. Pictures are compared bit for bit, and each trace is verified.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.exactness import explicit_softmax
from benchmarks.shapes import Shape, make_component, make_shape, small_vae
from toushi.hooks.kernels import AttentionInputs, attend, probabilities
from toushi.probe.recording.provenance import gpu_facts
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
GOALS = {torch.float32: 2e-6, torch.bfloat16: 2e-4, torch.float16: 2e-4}
COLUMNS = 8  # of the keys that are compared with fp64
LIMITS = {"ratio": 1.03, "peak_ratio": 1.05}  # of `mean`


@dataclass(frozen=True)
class GPUConfig:
    only: Literal["all", "kernels", "sdxl", "flux", "z-image"] = "all"
    """What is measured."""
    small: bool = False
    """Toy sizes; the numbers say nothing."""
    rounds: int = 2
    steps: int = 4
    """Sampling steps of each picture."""
    out: Path = Path("runs/benchmarks-gpu.jsonl")
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cuda where there is one, else cpu."""


# --- kernels ---


def kernel_rows(device: torch.device, small: bool) -> Iterator[dict]:
    """Each kernel with each dtype and mask: the output bit for bit, and columns against a softmax in fp64."""
    heads, queries, width = (2, 64, 32) if small else (24, 4096, 128)
    generator = torch.Generator(device).manual_seed(0)
    backends = BACKENDS if device.type == "cuda" else {"default": None, "math": SDPBackend.MATH}
    for keys in (77, 640) if small else (77, 4608):
        for dtype in GOALS:
            query = torch.randn(2, heads, queries, width, generator=generator, device=device, dtype=dtype)
            key, value = torch.randn(2, 2, heads, keys, width, generator=generator, device=device, dtype=dtype).unbind()
            lengths = torch.tensor([keys, keys - 40], device=device)
            padding = (torch.arange(keys, device=device) < lengths[:, None])[:, None, None]
            for mask_name, mask in {"none": None, "padding": padding, "bias": padding.to(dtype)}.items():
                for backend, value_of in backends.items():
                    context = nullcontext() if value_of is None else sdpa_kernel(value_of)
                    about = dict(part="kernels", backend=backend, dtype=str(dtype), keys=keys, mask=mask_name)
                    try:
                        with context:
                            plain = F.scaled_dot_product_attention(query, key, value, mask)
                            attended = attend(F.scaled_dot_product_attention, query, key, value, mask)
                    except RuntimeError as error:
                        yield {**about, "refused": str(error).splitlines()[0]}
                        continue
                    inputs = AttentionInputs(query, key, width**-0.5, mask)
                    columns = torch.linspace(0, keys - 41, COLUMNS).long().tolist()
                    read = probabilities(inputs, attended.lse, columns)
                    error = max_error(read, inputs, columns)
                    same = torch.equal(plain, attended.output)
                    numbers = {"identical": same, "difference": error, "goal": GOALS[dtype]}
                    yield {**about, "kernel": attended.kernel, "lse": attended.lse is not None, **numbers}


def max_error(read: torch.Tensor, inputs: AttentionInputs, columns: list[int]) -> float:
    """The largest difference from a softmax in fp64, head by head, which fits any memory."""
    worst = 0.0
    for row, head in np.ndindex(inputs.query.shape[:2]):
        query, key = (part[row, head][None, None] for part in (inputs.query, inputs.key))
        mask = None if inputs.mask is None else inputs.mask[row : row + 1]
        expected = explicit_softmax(AttentionInputs(query, key, inputs.scale, mask))[0, 0, columns]
        worst = max(worst, (expected - read[row, head]).abs().max().item())
    return worst


# --- architectures at full size, in bf16 ---


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """New modules are made on the device, in bf16, from one seed."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def sdxl(device: torch.device, small: bool, steps: int) -> Shape:
    widths, layers, pixels = ((32, 64, 64), (1, 1, 1), 128) if small else ((320, 640, 1280), (1, 2, 10), 1024)
    with made_on(device):
        unet = make_component(
            "UNet2DConditionModel",
            sample_size=pixels // 8,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=layers,
            cross_attention_dim=2048,
            attention_head_dim=tuple(width // (16 if small else 64) for width in widths),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        text, pooled = torch.randn(2, 1, 77, 2048), torch.randn(2, 1, 1280)
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = make_component("EulerDiscreteScheduler")
    parts = dict.fromkeys(names) | {"vae": small_vae(4, 4), "unet": unet.eval(), "scheduler": scheduler}
    inputs = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1], "guidance_scale": 5.0}
    inputs |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    return make_shape(make_component("StableDiffusionXLPipeline", **parts).to(device), pixels, steps, **inputs)


def flux(device: torch.device, small: bool, steps: int) -> Shape:
    sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2} if small else {}
    with made_on(device):
        transformer = make_component("FluxTransformer2DModel", guidance_embeds=True, **sizes)
        text, pooled = torch.randn(1, 64 if small else 512, 4096), torch.randn(1, 768)
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = make_component("FlowMatchEulerDiscreteScheduler", shift=3.0)
    parts = dict.fromkeys(names) | {
        "vae": small_vae(16, 4), "transformer": transformer.eval(), "scheduler": scheduler
    }  # fmt: skip
    inputs = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "guidance_scale": 3.5}
    pixels = 128 if small else 1024
    return make_shape(make_component("FluxPipeline", **parts).to(device), pixels, steps, **inputs)


def z_image(device: torch.device, small: bool, steps: int) -> Shape:
    """With guidance, and prompts of unequal length: one batch, a mask."""
    sizes = {"dim": 256, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2} if small else {}
    with made_on(device):
        transformer = make_component("ZImageTransformer2DModel", **sizes)
        texts = [torch.randn(length, 2560) for length in (70, 40)]
    scheduler = make_component("FlowMatchEulerDiscreteScheduler", shift=3.0)
    parts = {"text_encoder": None, "tokenizer": None, "vae": small_vae(16, 4)}
    pipeline = make_component("ZImagePipeline", transformer=transformer.eval(), scheduler=scheduler, **parts)
    inputs = {"prompt_embeds": texts[:1], "negative_prompt_embeds": texts[1:], "guidance_scale": 4.0}
    return make_shape(pipeline.to(device), 128 if small else 1024, steps, **inputs)


SHAPES: dict[str, Callable[[torch.device, bool, int], Shape]] = {"sdxl": sdxl, "flux": flux, "z-image": z_image}


def sampling_rows(name: str, config: GPUConfig, device: torch.device) -> Iterator[dict]:
    """Seconds and peak memory of `mean` and two named words of `heads`, over those of the bare run beside them."""
    pipeline, draw = SHAPES[name](device, config.small, config.steps)
    expected = draw()  # kernels are chosen and memory is reserved
    assert isinstance(expected, torch.Tensor)
    arms: dict[str, dict | None] = {"bare": None, "bare again": None, "mean": {"keep": "mean"}}
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for turn in range(config.rounds):
        for arm in arms if turn % 2 else reversed(arms):
            options = arms[arm]
            with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                begun = time.perf_counter()
                if options is not None:
                    stack.enter_context(record(pipeline, f"{home}/run", overwrite=True, **options))
                picture = draw()
                stack.close()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - begun
                peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
                found[arm].append((seconds, peak))
                if options is not None:
                    trace = open_trace(f"{home}/run")
                    same = isinstance(picture, torch.Tensor) and torch.equal(picture, expected)
                    if not trace.complete or trace.verify() or not same:
                        yield {"part": name, "arm": arm, "broken": "picture, trace or checksum differs"}
    for arm, rows in found.items():
        pairs = list(zip(rows, found["bare"]))
        numbers = {
            "ms_a_step": 1000 * statistics.median(seconds for seconds, _ in rows) / config.steps,
            "ratio": statistics.median(mine[0] / bare[0] for mine, bare in pairs),
            "peak_GB": max(peak for _, peak in rows) / 1e9,
            "peak_ratio": max(mine[1] / max(1, bare[1]) for mine, bare in pairs),
        }
        limits = {f"{key}_goal": value for key, value in LIMITS.items()} if arm == "mean" else {}
        yield {"part": name, "arm": arm, "rounds": len(rows), **numbers, **limits}


# --- the command ---


def main(config: GPUConfig) -> list[dict]:
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda" and not config.small:
        raise SystemExit("benchmarks: there is no GPU here. For a test at toy sizes: python -m benchmarks gpu --small")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"part": "machine", "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        machine |= gpu_facts(device)
    parts: dict[str, Callable[[], Iterator[dict]]] = {"kernels": partial(kernel_rows, device, config.small)}
    parts |= {name: partial(sampling_rows, name, config, device) for name in SHAPES}
    rows = []
    with config.out.open("w", encoding="utf-8") as file:

        def note(row: dict) -> None:
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print("  ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)

        note(machine)
        for name, part in parts.items():
            if config.only in ("all", name):
                for row in part():
                    note(row)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return rows


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).removeprefix("torch.")
