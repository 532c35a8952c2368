"""How large a trace will be, before it is written."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from toushi.hooks.attention import Call
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Model, Site
from toushi.probe.pipelines.registry import family_of
from toushi.probe.pipelines.size_estimate import MapSize
from toushi.probe.recording.policy import Policy
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Subscriber

CELL_BYTES = 80  # for each latent cell: the latent in fp32, 16 pixels of preview
QUEUED_STEPS = 4  # in memory at once: two wait for the disk, one is written, one is made


class OverBudget(ToushiError):
    """The trace would be larger than allowed; the message says what cheaper choices would take."""


@dataclass(frozen=True)
class Forecast:
    """Bytes of one picture's trace, for each way to keep it: {"heads": …, "mean": …, "sum": …}."""

    disk: dict[str, int]
    memory: dict[str, int]

    def __str__(self) -> str:
        return "; ".join(
            f"{keep}: {format_bytes(self.disk[keep])} on disk, {format_bytes(self.memory[keep])} in memory"
            for keep in self.disk
        )


class _MapSizes(Subscriber):
    """The maps of each site, from one evaluation of the denoiser, without their text columns."""

    def __init__(self, sites: Mapping[str, Site]):
        self.selected = sites
        self.maps: dict[str, MapSize] = {}

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return {name: site.module for name, site in self.selected.items()}

    def on_attention(self, call: Call) -> None:
        assert self.session.evaluation is not None
        inputs = self.session.evaluation.inputs
        _, heads, queries, keys = call.shape
        if self.selected[call.site].kind == "self":
            self.maps[call.site] = MapSize(heads, keys, queries)
        elif inputs.joint is None:
            self.maps[call.site] = MapSize(heads, 0, queries)
        else:  # the column is `rest`
            self.maps[call.site] = MapSize(heads, 1, inputs.grid[0] * inputs.grid[1])


def forecast(
    model: Model,
    prompt: str,
    negative: str = "",
    *,
    steps: int = 20,
    size: int | tuple[int, int] = 64,
    guidance: float = 3.0,
    sites: str | Iterable[str] | None = None,
    policy: Policy | None = None,
) -> Forecast:
    """Bytes of the trace of `model.sample` with these arguments. Evaluates the denoiser once.

    Raises ToushiError for a pipeline without a method that evaluates the denoiser once.
    """
    family, policy = family_of(model), policy or Policy()
    if family.evaluate is None or family.blank_latents is None:
        raise ToushiError(
            f"the size of a {family.name} pipeline's trace is known after its first step: record checks it against the "
            "budget then"
        )
    selected = {name: site for name, site in family.select_sites(model, sites).items() if site.kind != "encoder"}
    latents = family.blank_latents(model, size)
    with subscribe(model, subscriber := _MapSizes(selected)) as session:
        getattr(model, family.encode_prompt)([prompt], [negative] if guidance != family.unguided else None)
        columns = {branch: policy.columns(prompts[0], branch).count for branch, prompts in session.prompts.items()}
        getattr(model, family.evaluate)(latents, 1.0, prompt)
    maps = [
        size if selected[site].kind == "self" else size._replace(columns=size.columns + count)
        for site, size in subscriber.maps.items()
        for branch, count in columns.items()
        if policy.branches is None or branch in policy.branches
    ]
    return forecast_from_maps(maps, policy, len(policy.recorded_steps(steps)), (latents.shape[-2], latents.shape[-1]))


def forecast_from_maps(maps: Iterable[MapSize], policy: Policy, steps: int, latent: tuple[int, int]) -> Forecast:
    """Bytes of a trace with these maps in each of its recorded `steps`. `latent`: rows and columns of the latent's grid."""
    maps, bytes_each = list(maps), 4 if policy.dtype == "float32" else 2
    heads = sum(size.heads * size.columns * size.cells for size in maps)
    mean = sum(size.columns * size.cells for size in maps)
    cells = latent[0] * latent[1] * CELL_BYTES
    step = {"heads": heads * bytes_each + cells, "mean": mean * bytes_each + cells, "sum": mean * 4 + cells}
    disk = {keep: size * (1 if keep == "sum" else steps) for keep, size in step.items()}
    return Forecast(disk, {keep: size * QUEUED_STEPS for keep, size in step.items()})


def fits_budget(forecast: Forecast, keep: str, policy: Policy, pictures: int) -> bool:
    """Whether so many pictures, kept so, need no more disk than the budget and at most a tenth of free memory."""
    free = free_memory()
    disk, memory = forecast.disk[keep] * pictures, forecast.memory[keep] * pictures
    return disk <= policy.budget and (free is None or memory <= free / 10)


def check_budget(forecast: Forecast, keep: str, policy: Policy, pictures: int) -> None:
    """Raises OverBudget, with the sizes of cheaper choices, if the pictures do not fit."""
    if fits_budget(forecast, keep, policy, pictures):
        return
    cheaper = [other for other in forecast.disk if forecast.disk[other] < forecast.disk[keep]]
    listed = ", ".join(f'keep="{other}" {format_bytes(forecast.disk[other] * pictures)}' for other in cheaper)
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
    """Bytes of free memory, if the system tells it."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
        known = getattr(os, "sysconf_names", {})
        return os.sysconf(names[0]) * os.sysconf(names[1]) if all(name in known for name in names) else None
