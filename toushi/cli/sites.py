"""`toushi sites`: lists where attention can be recorded in a model."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.model_options import Loads
from toushi.cli.site_table import site_table
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.pipelines.family import Site as FamilySite
    from toushi.probe.trace.manifest import Site


@dataclass(frozen=True)
class Sites(Loads):
    ABOUT = """Lists the sites of a model: the modules whose attention can be recorded.

  toushi sites --model mini-unet
  toushi trace "猫" --sites 'unet.up.*'       (options that take sites accept names and globs)"""

    model: str = "mini-unet"
    """A shipped model, a folder with one, or a diffusers pipeline (folder or hub id)."""
    size: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Pixels, on which the grids depend; if not given, the model's default size."""

    def run(self) -> None:
        from toushi.cli.trace import checked_size
        from toushi.probe.pipelines.generate import generate
        from toushi.probe.pipelines.load import load_model, model_folder

        size, home = checked_size(self.size), model_folder(self.model)
        if home is not None and (home / "model_index.json").is_file():
            print(site_table(sites_from_configs(home, size)))
            return
        from toushi.probe.recording.record import record
        from toushi.probe.trace.open import open_trace

        model = load_model(self.model, self.checked_loading())
        with tempfile.TemporaryDirectory() as folder:  # one step tells grids and heads, whatever the model is
            with record(model, Path(folder) / "run", sites=["*"], keep="mean", overwrite=True) as recording:
                generate(model, "猫", steps=1, guidance=1.0, size=size)
            sites = open_trace(recording.traces[0]).sites
        print(site_table(sites))


def sites_from_configs(folder: Path, size: tuple[int, int] | None) -> "dict[str, Site]":
    """The sites of a pipeline as a manifest lists them, from its configs, because its weights may exceed the memory."""
    from toushi.cli.doctor import default_size
    from toushi.probe.pipelines.checkpoint_info import read_pipeline_info
    from toushi.probe.pipelines.generate import check_size
    from toushi.probe.pipelines.registry import family_of
    from toushi.probe.pipelines.size_estimate import downsampling, head_count
    from toushi.probe.trace.manifest import Site

    info = read_pipeline_info(folder)
    pipeline = info.pipeline
    if pipeline is None:
        lacking = "; ".join(f"{name} {why}" for name, why in info.failures.items())
        raise ToushiError(f"{folder} cannot be built from its configs: {lacking}; toushi doctor {folder} says more")
    family = family_of(pipeline)
    check_size(pipeline, size)
    factor, pixels = family.cell_pixels(pipeline), default_size(family, pipeline)
    cells = [-(-side // factor) for side in size or (pixels, pixels)]

    def describe(name: str, site: "FamilySite") -> Site:
        if site.kind == "encoder":
            return Site(kind=site.kind, grid=None, heads=None)
        coarser = downsampling(family, pipeline, name)
        rows, columns = (-(-n // coarser) for n in cells)
        return Site(kind=site.kind, grid=(rows, columns), heads=head_count(site.module))

    return {name: describe(name, site) for name, site in family.sites(pipeline).items()}
