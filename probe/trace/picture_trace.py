"""The trace of a picture: its contents, attention and states. Only the parts of the files that are asked for are read."""

import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from toushi.probe.analysis.maps import PLAIN_MEAN
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Span, Token, Word, unknown_words
from toushi.probe.trace import integrity, selection
from toushi.probe.trace.box_words import box_words
from toushi.probe.trace.image_file import read_image
from toushi.probe.trace.manifest import Site
from toushi.probe.trace.safetensors_reader import SafetensorsFile, StepStore
from toushi.probe.trace.selection import AttentionQuery, Sites, Steps, WordSpec, check_branch, select_sites
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded
from toushi.probe.trace.trace_format import ENCODER, IMAGE, map_key, numbered_keys


class Trace:
    """One recorded run. Made by `open_trace`.

    With `keep="sum"`, a trace holds one set of maps for all steps together: `attention` then has a single step, the
    last one, and its values are the mean over `steps`.
    """

    def __init__(self, files: StepStore):
        self.folder: Path = files.folder
        self.files, self.manifest = files, files.manifest

    # --- what there is

    @property
    def prompt(self) -> str | None:
        return self.manifest.prompt

    @property
    def complete(self) -> bool:
        return self.manifest.complete

    @property
    def keep(self) -> str:
        return self.manifest.keep

    @property
    def steps(self) -> list[int]:
        """The finished steps."""
        return self.files.steps

    @property
    def times(self) -> list[float]:
        """The model's time at each of `steps`; NaN where it is not known."""
        return self.files.times

    @property
    def sites(self) -> dict[str, Site]:
        """Name -> site (kind cross, self or encoder; grid [y, x]; heads), in the order of the model."""
        return self.manifest.sites

    @property
    def branches(self) -> list[str]:
        return list(self.manifest.branches)

    def tokens(self, branch: str = "cond") -> list[Token]:
        """Every token that was encoded, including special and template tokens, and tokens that the denoiser does not get."""
        return self.manifest.tokens_of(check_branch(self.manifest, branch))

    def words(self, branch: str = "cond") -> list[Word]:
        """The words of the branch's prompt, in order, each with `text`, `start` and `end` in characters.

        `uncond` has those of the negative prompt. Raises NotRecorded for a branch that the trace does not have.
        """
        return self.manifest.words_of(check_branch(self.manifest, branch))

    def unknown_words(self, branch: str = "cond") -> list[Word]:
        """The words that the text encoder reads as <unk>, since its vocabulary lacks them. Those in one <unk> have one
        map: `heat_map(word).attrs["unknown"]` names them."""
        return unknown_words(self.words(branch), self.tokens(branch))

    def places(self, branch: str = "cond") -> list[Token]:
        """The token at each place of the maps' token axis. The last one may stand for the sum over all pads, column -1."""
        return self.manifest.branches[check_branch(self.manifest, branch)].places()

    def span(self, word: WordSpec, branch: str = "cond") -> Span:
        """The characters [start, end) of the prompt that `word` means: text, "猫#2", a Word, or (start, end).

        Raises UnknownWord if they are not in the prompt, AmbiguousWord if the text occurs several times.
        """
        return selection.find_span(self.manifest, word, branch)

    # --- attention

    def attention(
        self,
        word: WordSpec | None = None,
        *,
        branch: str = "cond",
        sites: Sites = None,
        steps: Steps = None,
        grid: str = "finest",
    ) -> xr.DataArray | dict[str, xr.DataArray]:
        """Attention of the image to one word, or to every text column: float32 probabilities.

        DataArray [step, layer, head, token, y, x]. There is no `token` axis with a word, and no `head` axis where only
        the mean over heads was kept. The coordinate `token` is the column, with `text` and `kind` beside it; -1,
        "(pads)", is the sum over all pads, where only that was kept. `step` has `time` beside it. `y` and `x` are the
        centres of cells, counted in cells of the trace's finest grid.

        Sites are resampled to the grid of the finest one. With `grid="native"`, a dict of one DataArray for each site
        comes back. Where a site has fewer heads than another, or a step lacks a site, the values are NaN: average with
        xarray's `mean`, which skips them.

        `sites`: globs of site names, by default every cross (image-to-text) site. `steps`: index, list or slice, by
        default all that have the branch. Image self-attention has `key` in place of `token`.

        Raises UnknownWord or AmbiguousWord; NotRecorded for a word, site, step or branch that the trace does not have.
        """
        if grid not in ("finest", "native"):
            raise ToushiError(f'grid must be "finest" or "native"; {grid!r} came.')
        query = AttentionQuery(self.files, word, branch, select_sites(self.manifest, sites), steps)
        return selection.on_finest_grid(query) if grid == "finest" else selection.on_native_grids(query)

    def heat_map(
        self, word: WordSpec, *, branch: str = "cond", sites: Sites = None, steps: Steps = None
    ) -> xr.DataArray:
        """The image's attention to the word: float32 probability [y, x] on the grid of the finest site.

        The mean over heads within a site, then over steps, then over sites, each equally. If the model's card names a
        better rule (manifest `heat_map`), its sites are the default. `attrs["rule"]` says which rule was used.

        Raises what `attention` raises.
        """
        chosen, rule = self._sites_and_rule(sites)
        return selection.heat_map(AttentionQuery(self.files, word, branch, chosen, steps), rule)

    def box(
        self, y0: int, x0: int, y1: int, x1: int, *, branch: str = "cond", sites: Sites = None, steps: Steps = None
    ) -> pd.Series:
        """The words that the rectangle [y0:y1, x0:x1] of the picture attended to, the largest first.

        Series: word -> float64 probability, the mean of `heat_map(word)` over the cells of the box. Rows and columns
        count cells of the finest grid, from the top left corner; y1 and x1 are outside of the box. Equal words are
        numbered: "猫#2". Special tokens such as "<bos>", "(punctuation)", "(template)", "(pads)" and "(no text)", the
        attention to no text, have entries, too. All entries sum to 1 (unless only some words were kept). If the prompt
        is not known, each text token has an entry.

        Raises ToushiError for a box that is empty or outside the picture.
        """
        chosen, rule = self._sites_and_rule(sites)
        return box_words(AttentionQuery(self.files, None, branch, chosen, steps), (y0, x0, y1, x1), rule)

    def heat_map_rule(self) -> tuple[list[str], str]:
        """The sites that `heat_map` averages by default, and the rule in words: that of the model's card if the trace
        has its sites, else the mean of all."""
        better = self.manifest.heat_map
        if better and all(fnmatch.filter(self.sites, glob) for glob in better.sites):
            return select_sites(self.manifest, better.sites), better.rule
        return select_sites(self.manifest), PLAIN_MEAN

    def mass(self, branch: str = "cond", *, sites: Sites = None, steps: Steps = None) -> xr.DataArray:
        """Share of the attention that each text column gets: float64 [token], mean over heads, cells, steps, sites.

        Together with `attrs["rest"]`, the share of everything that is not text, it sums to 1, unless only some words were
        kept. Raises NotRecorded for a site, step or branch that the trace does not have.
        """
        return selection.mass(AttentionQuery(self.files, None, branch, select_sites(self.manifest, sites), steps))

    def step_count(self, site: str, branch: str = "cond") -> int:
        """The number of steps with maps of this site, over which its mean is: guidance may end, a cache may skip steps."""
        query = selection.AttentionQuery(self.files, None, branch, [site])
        if self.keep != "sum":
            return len(query.steps)
        return query.count(self.files.step(self.steps[-1]), map_key(site, branch))

    # --- pictures, latents, the encoder

    def image(self) -> np.ndarray | None:
        """The picture, uint8 [y, x, 3]; None if the run ended before it was written."""
        return read_image(self.folder) if IMAGE in self.manifest.files else None

    def preview(self, step: int) -> np.ndarray | None:
        """uint8 [y, x, 3]: a small picture of the final latents that the model predicts at this step. None if not kept.

        Raises NotRecorded for a step that the trace does not have.
        """
        return self._extra(step, "preview")

    def latent(self, step: int) -> xr.DataArray | None:
        """The latents after this step [channel, y, x], as the model has them; None if not kept.

        Raises NotRecorded for a step that the trace does not have.
        """
        latent = self._extra(step, "latent")
        if latent is None:
            return None
        cells = selection.cell_coordinates(self.manifest, latent.shape[1:])
        return xr.DataArray(latent, dims=("channel", "y", "x"), coords=cells)

    def encoder_tokens(self, branch: str = "cond") -> list[Token]:
        """The tokens of the text encoder that was recorded, without padding. Each encoder has positions of its own."""
        names = {name.partition(".")[0] for name, site in self.sites.items() if site.kind == "encoder"}
        tokens = [token for token in self.tokens(branch) if token.kind != "pad"]
        return [token for token in tokens if names & set(token.encoders) or not token.encoders] or tokens

    def encoder_file(self) -> SafetensorsFile:
        """The file of the text encoder's states and attention. Raises NotRecorded."""
        entry = self.manifest.files.get(ENCODER)
        if entry is None:
            raise NotRecorded("The text encoder was not recorded in this trace.")
        return self.files.named(ENCODER, entry.bytes)

    def encoder_states(self, branch: str = "cond") -> xr.DataArray:
        """Hidden states of the text encoder [layer, token, feature]; layer 0 is the embeddings. `token`: position.

        Raises NotRecorded if they were not kept.
        """
        file = self.encoder_file()
        keys = self._numbered(file, "state", branch)
        states = [file.read(key) for key in keys.values()]
        if states[0].ndim != 2 or len({state.shape for state in states}) > 1:
            raise DamagedTrace(f"{file.path}: the states must all be [token, feature] and of one shape.")
        positions = self._positions(branch, len(states[0]))
        return xr.DataArray(
            np.stack(states), dims=("layer", "token", "feature"), coords={"layer": list(keys), **positions}
        )

    def encoder_layers(self, branch: str = "cond") -> list[int]:
        """The encoder layers whose attention was kept, numbered from 0; none if it was not recorded."""
        try:
            return list(self._numbered(self.encoder_file(), "attention", check_branch(self.manifest, branch)))
        except NotRecorded:
            return []

    def encoder_attention(self, layer: int, branch: str = "cond") -> xr.DataArray:
        """Attention probabilities of one encoder layer [head, query, token]. Layers are numbered from 0, as in site names.

        Raises NotRecorded for a layer whose attention was not kept.
        """
        file = self.encoder_file()
        keys = self._numbered(file, "attention", branch)
        if layer not in keys:
            raise NotRecorded(
                f"There is no attention of encoder layer {layer}. The trace has layers {list(keys)}, counted from 0."
            )
        maps = file.read(keys[layer])
        if maps.ndim != 3 or maps.shape[1] != maps.shape[2]:
            raise DamagedTrace(f'{file.path}: "{keys[layer]}" must be [head, query, token]; it is {maps.shape}.')
        coordinates: dict[str, object] = {"head": np.arange(len(maps)), "query": np.arange(maps.shape[1])}
        coordinates |= self._positions(branch, maps.shape[2])
        return xr.DataArray(maps, dims=("head", "query", "token"), coords=coordinates)

    def verify(self) -> list[str]:
        """One sentence for each fault of the trace; an empty list if there is none."""
        return integrity.verify(self.files)

    # --- inside

    def _sites_and_rule(self, sites: Sites) -> tuple[list[str], str]:
        """The sites that are averaged, and the rule in words."""
        return self.heat_map_rule() if sites is None else (select_sites(self.manifest, sites), PLAIN_MEAN)

    def _extra(self, step: int, key: str) -> np.ndarray | None:
        (step,) = selection.select_steps(self.files, [step])
        if self.keep == "sum" and step != self.steps[-1]:
            return None
        file = self.files.step(step)
        if key not in file.keys:
            return None
        self.files.shape(file, key)
        values = file.read(key)
        if (values.dtype == np.uint8) != (key == "preview"):
            raise DamagedTrace(f'{file.path}: "{key}" has the wrong type, {values.dtype}.')
        return values

    def _numbered(self, file: SafetensorsFile, kind: str, branch: str) -> dict[int, str]:
        """Layer number -> key, in order. Raises NotRecorded if there is none."""
        numbers = numbered_keys(file.keys, kind, check_branch(self.manifest, branch))
        if not numbers:
            raise NotRecorded(f"No {kind} of the text encoder was kept for the branch {branch}.")
        return numbers

    def _positions(self, branch: str, length: int) -> dict[str, object]:
        texts = {token.position: token.text for token in self.encoder_tokens(branch)}
        return {"token": np.arange(length), "text": ("token", [texts.get(i, "") for i in range(length)])}
