"""How large a trace will be, before it is written."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from toushi.hooks.attention import AttentionHook, Call
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.registry import family_of
from toushi.probe.pipelines.size_estimate import MapSize
from toushi.probe.recording.policy import Policy

EXTRA = 80  # bytes for each latent cell: the latent in fp32, 16 pixels of preview
QUEUED = 4  # steps in memory at once: two wait for the disk, one is written, one is being made


class OverBudget(ToushiError):
    """The trace would be larger than allowed; the message says what cheaper choices would take."""


@dataclass(frozen=True)
class Forecast:
    """Bytes of one picture's trace, for each way to keep it: {"heads": …, "mean": …, "sum": …}."""

    disk: dict[str, int]
    memory: dict[str, int]

    def __str__(self) -> str:
        return "; ".join(
            f"{k}: {format_bytes(self.disk[k])} on disk, {format_bytes(self.memory[k])} in memory" for k in self.disk
        )


def forecast(
    model,
    prompt: str,
    negative: str = "",
    *,
    steps: int = 20,
    size: int | tuple[int, int] = 64,
    guidance: float = 3.0,
    sites: str | Iterable[str] | None = None,
    policy: Policy | None = None,
) -> Forecast:
    """Bytes of the trace that recording `model.sample` with these arguments would make. Runs the denoiser once."""
    family, policy = family_of(model), policy or Policy()
    if family.evaluate is None or family.blank_latents is None:
        raise ToushiError(
            f"the size of a {family.name} pipeline's trace is known when its first step has run: "
            "record checks it against the budget then"
        )
    said = getattr(model, family.encode_prompt)([prompt], [negative] if guidance != 1 else None)
    texts = family.encoded_prompts(EncodePromptCall(said))
    columns = {branch: policy.columns(some[0], branch).count for branch, some in texts.items()}
    if policy.branches is not None:
        columns = {branch: count for branch, count in columns.items() if branch in policy.branches}
    modules = {name: site for name, site in family.select_sites(model, sites).items() if site.kind != "encoder"}
    maps: list[MapSize] = []

    def see(call: Call) -> None:
        _, heads, cells, keys = call.shape
        maps.extend(MapSize(heads, keys if modules[call.site].kind == "self" else n, cells) for n in columns.values())

    blank = family.blank_latents(model, size)
    with AttentionHook({name: site.module for name, site in modules.items()}, see):
        getattr(model, family.evaluate)(blank, 1.0, prompt)
    return forecast_of(maps, policy, len(policy.recorded(steps)), (blank.shape[-2], blank.shape[-1]))


def forecast_of(maps: Iterable[MapSize], policy: Policy, steps: int, latent: tuple[int, int]) -> Forecast:
    """From the maps of one step, the number of recorded steps and the latent's grid."""
    maps, number = list(maps), 4 if policy.dtype == "float32" else 2
    heads = sum(m.heads * m.columns * m.cells for m in maps)
    mean = sum(m.columns * m.cells for m in maps)
    extra = latent[0] * latent[1] * EXTRA
    step = {"heads": heads * number + extra, "mean": mean * number + extra, "sum": mean * 4 + extra}
    disk = {keep: bytes * (1 if keep == "sum" else steps) for keep, bytes in step.items()}
    return Forecast(disk, {keep: bytes * QUEUED for keep, bytes in step.items()})


def fits(forecast: Forecast, keep: str, policy: Policy, pictures: int) -> bool:
    """Whether so many pictures, kept so, need no more disk than the budget and at most a tenth of free memory."""
    free = free_memory()
    disk, memory = forecast.disk[keep] * pictures, forecast.memory[keep] * pictures
    return disk <= policy.budget and (free is None or memory <= free / 10)


def check(forecast: Forecast, keep: str, policy: Policy, pictures: int) -> None:
    """Raises OverBudget, with the sizes of cheaper choices, where that does not fit."""
    if fits(forecast, keep, policy, pictures):
        return
    cheaper = [k for k in forecast.disk if forecast.disk[k] < forecast.disk[keep]]
    listed = ", ".join(f'keep="{k}" {format_bytes(forecast.disk[k] * pictures)}' for k in cheaper)
    more = "; or raise the budget (budget=, --budget)" if forecast.disk[keep] * pictures > policy.budget else ""
    raise OverBudget(
        f'keep="{keep}" would take {_excess(forecast, keep, policy, pictures)}. '
        f"Cheaper: {listed + '; or ' if listed else ''}fewer sites, steps or words{more}."
    )


def reason_not_heads(forecast: Forecast, policy: Policy, pictures: int) -> str:
    """Why only the mean over heads is kept, for the screen and the manifest."""
    return (
        f"the trace keeps the mean over heads: every head would take {_excess(forecast, 'heads', policy, pictures)}; "
        'keep="heads" (--keep heads) with fewer sites, steps or words, or a larger budget, keeps every head'
    )


def _excess(forecast: Forecast, keep: str, policy: Policy, pictures: int) -> str:
    disk, memory = forecast.disk[keep] * pictures, forecast.memory[keep] * pictures
    if disk > policy.budget:
        return f"{format_bytes(disk)} on disk; the budget is {format_bytes(policy.budget)}"
    return (
        f"{format_bytes(disk)} on disk; it would hold {format_bytes(memory)} in memory, more than a tenth of the "
        f"{format_bytes(free_memory() or 0)} that are free"
    )


def free_memory() -> int | None:
    """Bytes that the machine can still give, where it says so."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
        known = getattr(os, "sysconf_names", {})
        return os.sysconf(names[0]) * os.sysconf(names[1]) if all(n in known for n in names) else None
