"""`toushi doctor`: what will run here and what can be recorded, before anything is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from toushi.cli.doctor_messages import MESSAGES
from toushi.cli.language import language_of
from toushi.cli.model_options import Loads
from toushi.cli.terminal import table
from toushi.probe.base.bilingual_text import Language
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import Dtype, LoadOptions

if TYPE_CHECKING:
    import torch

    from toushi.probe.pipelines.checkpoint_info import ComponentInfo
    from toushi.probe.pipelines.family import Family
    from toushi.probe.pipelines.load_options import Dtype

Translate = Callable[..., str]
OFFLOADS = ("none", "model", "group", "sequential")  # from the fastest to the smallest
ACTIVATION_BYTES = 2 * 10**9  # for each 2**20 pixels: a rule of thumb, not a measurement


@dataclass(frozen=True)
class Doctor(Loads):
    ABOUT = """Shows what will run here and what can be recorded. Loads no weights.

  toushi doctor mini-unet
  toushi doctor models/z-image-turbo --dtype bf16
  toushi doctor models/flux --size 1024 --steps 28 --language zh

A folder with configs and index files is enough; no weights are needed. For a hub id, download these files first:

  hf download OWNER/NAME --include "*.json" --include "*.txt" --include "*.model" """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "mini-unet"
    """A shipped model, a folder with one, or a diffusers pipeline (folder, or hub id that was downloaded)."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Size of the picture in pixels. If not given, the model's default size and a smaller one are forecast."""
    steps: int | None = None
    """Number of recorded sampling steps; if not given, the model's default."""
    tokens: int = 32
    """Length of the prompt in tokens, for models that do not pad it."""
    language: Language | None = None
    """en or zh; if not given, the language of the locale."""

    def run(self) -> None:
        from toushi.probe.pipelines.load import cached_configs, model_folder

        for name, number in (("steps", self.steps), ("tokens", self.tokens)):
            if number is not None and number < 1:
                raise ToushiError(f"--{name} must be 1 or more, but {number} came")
        loading = self.checked_loading()
        home = model_folder(self.model) or cached_configs(self.model)
        if home is None:
            raise ToushiError(
                f"there is no folder {self.model} here; if it is a hub id, download its configs and index files first: "
                f'hf download {self.model} --include "*.json" --include "*.txt" --include "*.model"'
            )
        info = ModelInfo.of_pipeline(home) if (home / "model_index.json").is_file() else ModelInfo.of_mini_unet(home)
        translate = partial(MESSAGES.translate, language_of(self.language))
        print("\n\n".join(filter(None, report(info, self, loading, translate))))


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without its weights."""

    kind: str
    family: "Family | None"
    model: Any  # without weights; None where it could not be built
    parts: "dict[str, ComponentInfo]"
    unknown: dict[str, str]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    own: bool = False

    @classmethod
    def of_pipeline(cls, folder: Path) -> "ModelInfo":
        from toushi.probe.pipelines.checkpoint_info import read_pipeline_info
        from toushi.probe.pipelines.family import UnknownFamily
        from toushi.probe.pipelines.registry import family_of
        from toushi.probe.pipelines.size_estimate import default_argument

        info = read_pipeline_info(folder)
        family, sizes, steps = None, ((1024, 1024),), 28
        if info.pipeline is not None:
            try:
                family = family_of(info.pipeline)
            except UnknownFamily:
                family = None
            default = default_argument(info.pipeline, "num_inference_steps")
            steps = default if isinstance(default, int) else steps
        if family is not None:
            own = default_size(family, info.pipeline)
            sizes = tuple(dict.fromkeys((n, n) for n in (max(own // 2, 16), own)))
        parts = {part.name: part for part in info.components}
        return cls(info.kind, family, info.pipeline, parts, info.failures, sizes, steps, info.kind == "ZImagePipeline")

    @classmethod
    def of_mini_unet(cls, folder: Path) -> "ModelInfo":
        import torch

        from toushi.probe.pipelines.checkpoint_info import ComponentInfo, count_in_headers, count_in_module
        from toushi.probe.pipelines.load import read_mini_unet
        from toushi.probe.pipelines.registry import family_of

        model = read_mini_unet(folder)  # a few megabytes
        _, stored = count_in_headers([folder / "model.safetensors"])
        parts = {}
        for name, module in model.named_children():
            if isinstance(module, torch.nn.Module) and any(True for _ in module.parameters()):
                count, sizes = count_in_module(module)
                parts[name] = ComponentInfo(name, type(module).__name__, count, None, ("config",), 0, **sizes)
        whole = sum(part.parameters for part in parts.values())
        parts = {n: _with_file_size(part, int(stored * part.parameters / whole)) for n, part in parts.items()}
        return cls("MiniUNet", family_of(model), model, parts, {}, ((64, 64), (96, 96)), 20)


def _with_file_size(part: "ComponentInfo", size: int) -> "ComponentInfo":
    from dataclasses import replace

    return replace(part, stored_bytes=size, sources=("headers", "config"))


def default_size(family: "Family", pipeline: object) -> int:
    """Side, in pixels, of the square picture that the pipeline draws by default."""
    denoiser = getattr(pipeline, family.denoiser)
    cells = getattr(pipeline, "default_sample_size", None) or getattr(denoiser.config, "sample_size", None)
    scale = getattr(pipeline, "vae_scale_factor", 8)
    return cells * scale if isinstance(cells, int) and cells * scale >= 16 else 1024


# --- the report ---


def report(info: ModelInfo, command: Doctor, loading: LoadOptions, translate: Translate) -> list[str]:
    """The paragraphs of the output."""
    import torch

    from toushi.probe.pipelines.load import best_device

    device = torch.device(loading.device or best_device())
    dtype: Dtype = loading.dtype or ("bf16" if device.type == "cuda" and info.kind != "MiniUNet" else "fp32")
    free = free_on(device)
    sizes = info.sizes
    if command.size is not None:
        from toushi.cli.trace import checked_size

        size = checked_size(command.size)
        sizes = (size,) if size else sizes
    denoiser = info.family.denoiser if info.family else "transformer"
    lines = [
        head(info, loading, device, dtype, free, translate),
        parts_table(info, denoiser, loading.quantize or dtype, translate),
        offload_table(info, denoiser, device, dtype, free, sizes[-1], translate),
        recording(info, sizes, command.steps, command.tokens, info.own and loading.engine == "own", translate),
    ]
    lines += ["\n".join(translate("unknown", part=part, why=why) for part, why in info.unknown.items())]
    return lines


def head(
    info: ModelInfo, loading: LoadOptions, device: "torch.device", dtype: Dtype, free: int | None, translate: Translate
) -> str:
    import torch

    if info.family is None:
        model = translate("no_family", kind=info.kind)
    else:
        own = "own" if info.own and loading.engine == "own" else "family"
        model = translate(own, kind=info.kind, family=info.family.name)
    left = format_bytes(free) if free is not None else "?"
    if device.type == "cuda":
        where = translate("on_gpu", name=str(device), card=torch.cuda.get_device_name(device), free=left)
    else:
        where = translate("on_cpu", name=str(device), threads=loading.threads or torch.get_num_threads(), free=left)
    rows = [
        (translate("model"), model),
        (translate("device"), where),
        (translate("dtype"), translate("asked_dtype" if loading.dtype else "default_dtype", dtype=dtype)),
        (
            translate("kernel"),
            translate("kernels", plain=kernel(info, device, dtype), masked=kernel(info, device, dtype, True)),
        ),
    ]
    names = ("accelerate", "peft", "bitsandbytes")
    here, absent = [n for n in names if find_spec(n)], [n for n in names if not find_spec(n)]
    libraries = [translate("here", names=", ".join(here))] if here else []
    libraries += [translate("absent", names=", ".join(absent))] if absent else []
    return table([*rows, (translate("libraries"), "; ".join(libraries))])


def kernel(info: ModelInfo, device: "torch.device", dtype: Dtype, masked: bool = False) -> str:
    """The kernel that PyTorch chooses for the attention of the denoiser."""
    import torch

    from toushi.hooks.kernels import choose_kernel
    from toushi.probe.pipelines.load import torch_dtype
    from toushi.probe.pipelines.size_estimate import head_count

    width, count = 64, 2
    if info.family is not None and info.model is not None:
        site = next((site.module for site in info.family.sites(info.model).values() if site.kind == "cross"), None)
        if site is not None:
            count = head_count(site)
            inner = next((getattr(site, n) for n in ("to_q", "q") if hasattr(site, n)), None)
            width = (getattr(inner, "out_features", None) or width * count) // count
    query = torch.zeros(1, count, 64, width, dtype=torch_dtype(dtype), device=device)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool, device=device) if masked else None
    return choose_kernel(query, query, query, mask, 0.0, False, None, False)


def parts_table(info: ModelInfo, denoiser: str, dtype: str, translate: Translate) -> str:
    from toushi.probe.pipelines.checkpoint_info import weight_bytes

    rows = [tuple(translate(key, dtype=dtype) for key in ("part", "class", "parameters", "stored", "memory", "known"))]
    for name, part in info.parts.items():
        known = " + ".join(translate(key) for key in part.sources)
        known += f", {translate('missing', count=part.missing_files)}" if part.missing_files else ""
        held = format_bytes(weight_bytes(part, name, denoiser, dtype)) if part.parameters is not None else "?"
        stored = format_bytes(part.stored_bytes) if part.stored_bytes is not None else "–"
        rows.append((name, part.kind, number(part.parameters), stored, held, known))
    parts = info.parts.values()
    counts = [part.parameters for part in parts if part.parameters is not None]
    if len(counts) == len(parts):
        whole = sum(weight_bytes(part, part.name, denoiser, dtype) for part in parts)
        rows.append((translate("whole"), "", number(sum(counts)), "", format_bytes(whole), ""))
    return table(rows, right=(2, 3, 4))


def offload_table(
    info: ModelInfo,
    denoiser: str,
    device: "torch.device",
    dtype: Dtype,
    free: int | None,
    size: tuple[int, int],
    translate: Translate,
) -> str:
    """The memory that each offload needs in each dtype, and the first choice that fits."""
    from toushi.probe.pipelines.checkpoint_info import needed_bytes
    from toushi.probe.recording.forecast import free_memory

    small = info.kind == "MiniUNet"
    activations = 0 if small else int(ACTIVATION_BYTES * size[0] * size[1] / 2**20)
    dtypes = list(dict.fromkeys([dtype, "bf16", "fp32", *(() if small else ("4bit",))]))
    ways = ("none",) if small else OFFLOADS
    rows, best, least = [(translate("offload"), *dtypes)], None, None
    for way in ways:
        row = []
        for kind in dtypes:
            need = needed_bytes(info.parts, denoiser, way, kind)
            if need is None:
                row.append(translate("size_unknown"))
                continue
            # On a CPU all weights lie in main memory whatever the offload.
            four = kind == "4bit" and (device.type != "cuda" or find_spec("bitsandbytes") is None)
            if four or (device.type == "cpu" and way != "none"):
                row.append(format_bytes(need))
                continue
            fits = free is None or need + activations <= free
            if way != "none" and (main := free_memory()) is not None:
                fits = fits and (needed_bytes(info.parts, denoiser, "none", kind) or 0) <= main
            least = need + activations if least is None else min(least, need + activations)
            if fits and best is None:
                best = (way, kind)
            row.append(translate("fits" if fits else "not", size=format_bytes(need)))
        rows.append((way, *row))
    lines = [table(rows)]
    if activations:
        at = "x".join(map(str, size))
        lines.append(translate("weights_at_once", activations=format_bytes(activations), size=at))
    if device.type == "cpu" and not small:
        lines.append(translate("cpu_offload"))
    missing = sum(part.missing_files for part in info.parts.values())
    if best is not None:
        way, kind = best
        options = [f"--device {device}"]
        other = ["--engine diffusers"] if info.own else []
        options += ["--quantize 4bit", *other] if kind == "4bit" else [f"--dtype {kind}"]
        options += [f"--offload {way}"] if way != "none" else []
        lines.append(translate("run", how=" ".join(options)))
    elif least is not None:
        lines.append(translate("nothing_fits", size=format_bytes(least)))
    if missing:
        lines.append(translate("weights_absent", count=missing))
    return "\n".join(lines)


def recording(
    info: ModelInfo,
    sizes: Sequence[tuple[int, int]],
    steps: int | None,
    tokens: int,
    own_engine: bool,
    translate: Translate,
) -> str:
    """The size of a trace, for each size of the picture and each choice of --keep. `own_engine`: our own Z-Image samples."""
    from toushi.probe.pipelines.size_estimate import default_branches, estimate_maps, kept_columns, site_shapes
    from toushi.probe.recording.forecast import fits_budget, forecast, forecast_from_maps
    from toushi.probe.recording.policy import DEFAULT_BUDGET, Policy

    if info.family is None or info.model is None:
        return ""
    keeps = ("heads", "mean", "sum")
    rows, refused = [(translate("size"), *(translate("keep", keep=keep) for keep in keeps))], False
    small = info.family.evaluate is not None
    texts = 2 if small else default_branches(info.model)
    usual = info.steps
    if own_engine:
        from toushi.probe.models.z_image import ZImage
        from toushi.probe.pipelines.generate import default_steps

        texts, usual = 1, default_steps(ZImage)
    steps = steps or usual
    for size in sizes:
        if small:
            estimate = forecast(info.model, "猫" * max(1, tokens // 2), steps=steps, size=size)
        else:
            maps, grid = estimate_maps(info.family, info.model, size, tokens, texts)
            estimate = forecast_from_maps(maps, Policy(), steps, grid)
        row = []
        for keep in keeps:
            key = "within" if fits_budget(estimate, keep, Policy(), 1) else "beyond"
            refused |= key == "beyond"
            row.append(
                translate(key, disk=format_bytes(estimate.disk[keep]), memory=format_bytes(estimate.memory[keep]))
            )
        rows.append(("x".join(map(str, size)), *row))
    sites = info.family.select_sites(info.model, None).values()
    counts = {
        "sites": sum(site.kind == "cross" for site in sites) if small else len(site_shapes(info.family, info.model)),
        "columns": info.model.tokenizer.length if small else kept_columns(info.family, info.model, tokens),
        "branches": texts,
    }
    lines = [translate("recording", steps=steps, **counts), table(rows)]
    if refused:
        lines.append(translate("refused", budget=format_bytes(DEFAULT_BUDGET)))
    if layers := sum(site.kind == "encoder" for site in sites):
        lines.append(translate("encoder", layers=layers, encoder=info.family.text_encoder))
    return "\n".join(lines)


def free_on(device: "torch.device") -> int | None:
    """Free bytes of the device."""
    import torch

    from toushi.probe.recording.forecast import free_memory

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


def number(count: int | None) -> str:
    """A number of parameters as text: 6.15 B."""
    if count is None:
        return "?"
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
