"""A recorded picture: what is in its trace, and answers about it. Reads only the parts of the files that are asked for."""

import fnmatch
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toushi.probe.analysis.maps import PLAIN_MEAN
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Span, Token, Word
from toushi.probe.trace import integrity, selection
from toushi.probe.trace.image_file import read_image
from toushi.probe.trace.manifest import Site
from toushi.probe.trace.safetensors_reader import SafetensorsFile, StepStore
from toushi.probe.trace.selection import AttentionQuery, Sites, Steps, WordSpec, check_branch, select_sites
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded
from toushi.probe.trace.trace_format import ENCODER, IMAGE


class Trace:
    """One recorded run. Made by `open_trace`.

    `keep="sum"` traces hold one map set for all steps together: `attention` then has a single step, the last
    one summed, and its values are the mean over `steps`.
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
        """Every token that was encoded: specials, template and those that the denoiser never sees, too."""
        return self.manifest.tokens_of(check_branch(self.manifest, branch))

    def words(self, branch: str = "cond") -> list[Word]:
        return self.manifest.words_of(check_branch(self.manifest, branch))

    def places(self, branch: str = "cond") -> list[Token]:
        """The token at each place of the maps' token axis. The last one may stand for the sum over all pads: column -1."""
        return self.manifest.branches[check_branch(self.manifest, branch)].places()

    def span(self, word: WordSpec, branch: str = "cond") -> Span:
        """The characters that `word` means: text, "猫#2", a Word, or (start, end). See toushi.probe.text.alignment.find_word."""
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

        DataArray [step, layer, head, token, y, x]; no `token` axis when a word is given, no `head` axis where
        only the mean over heads was kept. `token` is the column, with `text` and `kind` beside it; -1, "(pads)", is
        the sum over all pads, where only that was kept. `step` has `time` beside it. Sites are resampled to the grid of the finest; `grid="native"` gives a dict of one
        DataArray for each site instead. Where a site has fewer heads than another, or a step lacks a site, the
        values are NaN: average with xarray's `mean`, which skips them.

        `sites`: globs of site names, by default every cross (image-to-text) site; steps: index, list or slice,
        by default all that have the branch. Image self-attention has `key` in place of `token`.
        """
        if grid not in ("finest", "native"):
            raise ToushiError(f'grid must be "finest" or "native"; {grid!r} came.')
        query = AttentionQuery(self.files, word, branch, select_sites(self.manifest, sites), steps)
        return selection.on_finest_grid(query) if grid == "finest" else selection.on_native_grids(query)

    def heat_map(
        self, word: WordSpec, *, branch: str = "cond", sites: Sites = None, steps: Steps = None
    ) -> xr.DataArray:
        """Where the image looked at the word: float32 probability [y, x] on the grid of the finest site.

        Averages over heads within a site, then over steps, then over sites equally. Where the model's card
        names a better rule (manifest `heat_map`), its sites are the default; `attrs["rule"]` says which it was.
        """
        chosen, rule = self.heat_map_rule() if sites is None else (select_sites(self.manifest, sites), PLAIN_MEAN)
        return selection.heat_map(AttentionQuery(self.files, word, branch, chosen, steps), rule)

    def heat_map_rule(self) -> tuple[list[str], str]:
        """The sites that `heat_map` averages when none are named, and the rule in words: the card's where the trace
        has its sites, else the mean of all."""
        better = self.manifest.heat_map
        if better and all(fnmatch.filter(self.sites, glob) for glob in better.sites):
            return select_sites(self.manifest, better.sites), better.rule
        return select_sites(self.manifest), PLAIN_MEAN

    def mass(self, branch: str = "cond", *, sites: Sites = None, steps: Steps = None) -> xr.DataArray:
        """Share of the attention that each text column got: float64 [token], mean over heads, cells, steps, sites.

        With `attrs["rest"]`, what went to no text column, it sums to 1 (unless only some words were kept).
        """
        return selection.mass(AttentionQuery(self.files, None, branch, select_sites(self.manifest, sites), steps))

    # --- pictures, latents, the encoder

    def image(self) -> np.ndarray | None:
        """The picture, uint8 [y, x, 3]; None if the run did not come that far."""
        return read_image(self.folder) if IMAGE in self.manifest.files else None

    def preview(self, step: int) -> np.ndarray | None:
        """What the model expected the picture to be at this step, small: uint8 [y, x, 3]; None if not kept."""
        return self._extra(step, "preview")

    def latent(self, step: int) -> xr.DataArray | None:
        """The latent after this step [channel, y, x], as the model has it; None if not kept."""
        found = self._extra(step, "latent")
        return None if found is None else xr.DataArray(found, dims=("channel", "y", "x"))

    def encoder_tokens(self, branch: str = "cond") -> list[Token]:
        """The tokens of the text encoder that was recorded, without padding. Another one counts positions anew."""
        names = {name.partition(".")[0] for name, site in self.sites.items() if site.kind == "encoder"}
        tokens = [token for token in self.tokens(branch) if token.kind != "pad"]
        return [token for token in tokens if names & set(token.encoders) or not token.encoders] or tokens

    def encoder_states(self, branch: str = "cond") -> xr.DataArray:
        """Hidden states of the text encoder [layer, token, feature]; layer 0 is the embeddings. `token`: position."""
        file = self._encoder()
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
            return list(self._numbered(self._encoder(), "attention", check_branch(self.manifest, branch)))
        except NotRecorded:
            return []

    def encoder_attention(self, layer: int, branch: str = "cond") -> xr.DataArray:
        """Attention probabilities of one encoder layer [head, query, token]; layers are numbered from 0."""
        file = self._encoder()
        keys = self._numbered(file, "attention", branch)
        if layer not in keys:
            raise NotRecorded(f"There is no attention of encoder layer {layer}; kept are {list(keys)}.")
        found = file.read(keys[layer])
        if found.ndim != 3 or found.shape[1] != found.shape[2]:
            raise DamagedTrace(f'{file.path}: "{keys[layer]}" must be [head, query, token]; it is {found.shape}.')
        return xr.DataArray(found, dims=("head", "query", "token"), coords=self._positions(branch, found.shape[2]))

    def verify(self) -> list[str]:
        """Everything that is wrong with the trace, in sentences; an empty list if nothing is."""
        return integrity.verify(self.files)

    # --- inside

    def _extra(self, step: int, key: str) -> np.ndarray | None:
        (step,) = selection.select_steps(self.files, [step])
        if self.keep == "sum" and step != self.steps[-1]:
            return None
        file = self.files.step(step)
        if key not in file.keys:
            return None
        self.files.shape(file, key)
        found = file.read(key)
        if (found.dtype == np.uint8) != (key == "preview"):
            raise DamagedTrace(f'{file.path}: "{key}" has the wrong type, {found.dtype}.')
        return found

    def _encoder(self) -> SafetensorsFile:
        entry = self.manifest.files.get(ENCODER)
        if entry is None:
            raise NotRecorded("The text encoder was not recorded in this trace.")
        return self.files.named(ENCODER, entry.bytes)

    def _numbered(self, file: SafetensorsFile, kind: str, branch: str) -> dict[int, str]:
        """Layer number -> key, in order, of `{kind}/{number}/{branch}`."""
        check_branch(self.manifest, branch)
        found = (re.fullmatch(rf"{kind}/([0-9]{{1,6}})/{branch}", key) for key in file.keys)
        numbers = sorted(int(match[1]) for match in found if match)
        if not numbers:
            raise NotRecorded(f"No {kind} of the text encoder was kept for the branch {branch}.")
        return {number: f"{kind}/{number}/{branch}" for number in numbers}

    def _positions(self, branch: str, length: int) -> dict[str, Any]:
        texts = {token.position: token.text for token in self.encoder_tokens(branch)}
        return {"token": np.arange(length), "text": ("token", [texts.get(i, "") for i in range(length)])}
