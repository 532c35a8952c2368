"""Opens a trace and answers questions about it. Needs no torch; reads only the parts of the files it is asked for."""

import difflib
import fnmatch
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import checked_path
from toushi.probe.text.alignment import Span, Token, Word, find
from toushi.probe.trace import manifest as layout
from toushi.probe.trace import selection as attention
from toushi.probe.trace.manifest import DamagedTrace
from toushi.probe.trace.safetensors_reader import JSON_BYTES, StepFiles, Tensors, read_bytes, read_lines
from toushi.probe.trace.selection import Asked, NotRecorded, Question, Sites, Steps, on_finest_grid, on_native_grids


class NoTrace(ToushiError):
    """There is no trace in that folder."""


def open_trace(folder: str | Path) -> Any:
    """The trace in the folder, finished or not: a Trace of a picture, or an EncoderTrace (probe/trace/encoder_trace.py) of texts.

    Raises NoTrace, DamagedTrace, NewerTrace, PathError.
    """
    folder = checked_path(folder)
    if not folder.is_dir():
        raise NoTrace(f"No trace at {folder}: there is no such folder.")
    if not (folder / layout.MANIFEST).exists():
        if (folder / layout.MEMBERS).exists():
            members = _members(folder)
            named = ", ".join(members[:6]) + (", …" if len(members) > 6 else "")
            raise NoTrace(
                f"{folder} is a collection of {len(members)} traces ({named}). Open one of them, "
                f"{folder / members[0]}, or all of them with open_collection."
            )
        raise NoTrace(f"No trace in {folder}: it has no {layout.MANIFEST}.")
    where = str(folder / layout.MANIFEST)
    raw = layout.parse(read_bytes(folder, layout.MANIFEST, JSON_BYTES), where)
    if isinstance(raw, dict) and raw.get("kind") == "encoder":
        from toushi.probe.trace.encoder_trace import EncoderTrace

        return EncoderTrace(folder, raw)
    manifest = layout.check_manifest(raw, where)
    return Trace(folder, manifest, read_lines(folder, manifest["keep"]))


def open_picture(folder: str | Path) -> "Trace":
    """`open_trace`, where only the trace of a picture will do. Raises NotAPicture."""
    trace = open_trace(folder)
    if isinstance(trace, Trace):
        return trace
    from toushi.probe.trace.encoder_trace import NotAPicture

    raise NotAPicture(
        f"{folder} is a trace of a text encoder, where a trace of a picture was expected: toushi info {folder} says "
        "what is in it, and open_trace gives it to Python."
    )


def open_collection(folder: str | Path) -> list["Trace"]:
    """The traces of a folder that several runs, or a batch, were recorded into."""
    folder = checked_path(folder)
    if not (folder / layout.MEMBERS).exists():
        hint = " It holds one trace: use open_trace." if (folder / layout.MANIFEST).exists() else ""
        raise NoTrace(f"No collection in {folder}: it has no {layout.MEMBERS}.{hint}")
    return [open_trace(folder / member) for member in _members(folder)]


def _members(folder: Path) -> list[str]:
    where = str(folder / layout.MEMBERS)
    raw = layout.parse(read_bytes(folder, layout.MEMBERS, JSON_BYTES), where)
    if not isinstance(raw, dict) or raw.get("format") != layout.COLLECTION:
        raise DamagedTrace(f'{where} is not a Toushi collection: "format" must be "{layout.COLLECTION}".')
    layout.check_version(raw, where)
    members = raw.get("members")
    if not isinstance(members, list) or not members or not all(map(layout.is_member, members)):
        raise DamagedTrace(f'{where}: members must be a list of folders named "000", "001", …')
    if len(set(members)) < len(members):
        raise DamagedTrace(f"{where}: members must be different folders; some are named twice.")
    for member in members:
        if (folder / member).is_symlink():
            raise DamagedTrace(f"{folder / member} must be a folder; a link can lead out of the collection.")
    return members


class Trace:
    """One recorded run. Made by `open_trace`.

    `keep="sum"` traces hold one map set for all steps together: `attention` then has a single step, the last
    one summed, and its values are the mean over `steps`.
    """

    def __init__(self, folder: Path, manifest: dict, lines: list[dict]):
        self.folder = folder
        self.manifest = manifest
        self.files = StepFiles(folder, manifest, lines)

    # --- what there is

    @property
    def prompt(self) -> str | None:
        return self.manifest["prompt"]

    @property
    def complete(self) -> bool:
        return self.manifest["complete"]

    @property
    def keep(self) -> str:
        return self.manifest["keep"]

    @property
    def steps(self) -> list[int]:
        """The finished steps."""
        return self.files.steps

    @property
    def times(self) -> list[float]:
        """The model's time at each of `steps`; NaN where it is not known."""
        planned = self.manifest["steps"].get("times") or []
        planned = dict(enumerate(planned))
        listed = {step: line.get("time") for step, line in self.files.lines.items()}
        return [float(planned.get(step, math.nan) if time is None else time) for step, time in listed.items()]

    @property
    def sites(self) -> dict[str, dict[str, Any]]:
        """Name -> {kind: cross | self | encoder, grid: [y, x], heads}, in the order of the model."""
        return self.manifest["sites"]

    @property
    def branches(self) -> list[str]:
        return list(self.manifest["branches"])

    def tokens(self, branch: str = "cond") -> list[Token]:
        """Every token that was encoded: specials, template and those that the denoiser never sees, too."""
        return layout.tokens_of(self.manifest, self.known_branch(branch))

    def words(self, branch: str = "cond") -> list[Word]:
        return layout.words_of(self.manifest, self.known_branch(branch))

    def span(self, word: Asked, branch: str = "cond") -> Span:
        """The characters that `word` means: text, "猫#2", a Word, or (start, end). See toushi.probe.text.alignment.find."""
        self.known_branch(branch)
        prompt = layout.prompt_of(self.manifest, branch)
        if prompt is None:
            raise NotRecorded(
                f"The {branch} prompt is not known by its tokens (the run was given ready-made embeddings, or the "
                "pipeline is no row of the family table), so there are no words. "
                "Ask without a word: the maps are then by token index."
            )
        return find(prompt, self.words(branch), word)

    # --- attention

    def attention(
        self,
        word: Asked | None = None,
        *,
        branch: str = "cond",
        sites: Sites = None,
        steps: Steps = None,
        grid: str = "finest",
    ) -> xr.DataArray | dict[str, xr.DataArray]:
        """Attention of the image to one word, or to every text column: float32 probabilities.

        DataArray [step, layer, head, token, y, x]; no `token` axis when a word is given, no `head` axis where
        only the mean over heads was kept. `token` is the column, with `text` and `kind` beside it; `step` has
        `time` beside it. Sites are resampled to the grid of the finest; `grid="native"` gives a dict of one
        DataArray for each site instead. Where a site has fewer heads than another, or a step lacks a site, the
        values are NaN: average with xarray's `mean`, which skips them.

        `sites`: globs of site names, by default every cross (image-to-text) site; steps: index, list or slice,
        by default all that have the branch. Image self-attention has `key` in place of `token`.
        """
        if grid not in ("finest", "native"):
            raise ToushiError(f'grid must be "finest" or "native"; {grid!r} came.')
        question = Question(self, word, branch, self.known_sites(sites), steps)
        return on_finest_grid(question) if grid == "finest" else on_native_grids(question)

    def heat_map(self, word: Asked, *, branch: str = "cond", sites: Sites = None, steps: Steps = None) -> xr.DataArray:
        """Where the image looked at the word: float32 probability [y, x] on the grid of the finest site.

        Averages over heads within a site, then over steps, then over sites equally. Where the model's card
        names a better rule (manifest `heat_map`), its sites are the default; `attrs["rule"]` says which it was.
        """
        chosen, rule = self.heat_map_rule() if sites is None else (self.known_sites(sites), attention.PLAIN_MEAN)
        return attention.heat_map(Question(self, word, branch, chosen, steps), rule)

    def heat_map_rule(self) -> tuple[list[str], str]:
        """The sites that `heat_map` averages when none are named, and the rule in words: the card's where the trace
        has its sites, else the mean of all."""
        better = self.manifest.get("heat_map")
        if better and all(fnmatch.filter(self.sites, glob) for glob in better["sites"]):
            return self.known_sites(better["sites"]), better["rule"]
        return self.known_sites(), attention.PLAIN_MEAN

    def mass(self, branch: str = "cond", *, sites: Sites = None, steps: Steps = None) -> xr.DataArray:
        """Share of the attention that each text column got: float64 [token], mean over heads, cells, steps, sites.

        With `attrs["rest"]`, what went to no text column, it sums to 1 (unless only some words were kept).
        """
        return attention.mass(Question(self, None, branch, self.known_sites(sites), steps))

    # --- pictures, latents, the encoder

    def image(self) -> np.ndarray | None:
        """The picture, uint8 [y, x, 3]; None if the run did not come that far."""
        if layout.IMAGE not in self.manifest.get("files", {}):
            return None
        from PIL import Image

        data = read_bytes(self.folder, layout.IMAGE)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                if picture.width * picture.height > 2**26:
                    raise ValueError(f"{picture.width}x{picture.height} pixels cannot be right")
                return np.asarray(picture.convert("RGB"))
        except Exception as error:  # Pillow's readers raise many types
            raise DamagedTrace(f"{self.folder / layout.IMAGE} is not a readable picture: {error}.") from None

    def preview(self, step: int) -> np.ndarray | None:
        """What the model expected the picture to be at this step, small: uint8 [y, x, 3]; None if not kept."""
        return self._extra(step, "preview")

    def latent(self, step: int) -> xr.DataArray | None:
        """The latent after this step [channel, y, x], as the model has it; None if not kept."""
        found = self._extra(step, "latent")
        return None if found is None else xr.DataArray(found, dims=("channel", "y", "x"))

    def encoder_tokens(self, branch: str = "cond") -> list[Token]:
        """The tokens of the text encoder that was recorded, without padding. Another one counts positions anew."""
        names = {name.partition(".")[0] for name, site in self.sites.items() if site["kind"] == "encoder"}
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
            return list(self._numbered(self._encoder(), "attention", self.known_branch(branch)))
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
        from toushi.probe.trace.integrity import problems

        return list(problems(self))

    # --- inside

    def known_branch(self, branch: str) -> str:
        if branch not in self.manifest["branches"]:
            raise NotRecorded(f"There is no branch {branch!r}; this trace has {', '.join(self.branches) or 'none'}.")
        return branch

    def known_sites(self, sites: Sites = None) -> list[str]:
        """Names in the manifest's order."""
        if sites is None:
            chosen = {name for name, site in self.sites.items() if site["kind"] == "cross"}
            if not chosen:
                raise NotRecorded("The trace has no image-to-text site. Name the sites that you want.")
        else:
            chosen = set()
            for pattern in map(str, [sites] if isinstance(sites, str) else list(sites)):
                found = {pattern} & set(self.sites) or {n for n in self.sites if fnmatch.fnmatchcase(n, pattern)}
                if not found:
                    near = difflib.get_close_matches(pattern, self.sites, n=3, cutoff=0.3)
                    listed = ", ".join(near or list(self.sites)[:5])
                    raise NotRecorded(f"No site of this trace is called {pattern!r}. Near: {listed or 'none at all'}.")
                chosen |= found
            if not chosen:
                raise ToushiError("At least one site is needed; the list of sites is empty.")
        if encoder := [name for name in chosen if self.sites[name]["kind"] == "encoder"]:
            raise ToushiError(f"{encoder[0]} lies in the text encoder, which has no map: ask encoder_attention.")
        return [name for name in self.sites if name in chosen]

    def known_steps(self, steps: Steps) -> list[int]:
        if steps is None:
            return self.steps
        count = self.manifest["steps"]["count"]
        try:
            if isinstance(steps, slice):
                return [step for step in range(*steps.indices(count)) if step in self.files.lines]
            asked = [int(n.__index__()) for n in ([steps] if isinstance(steps, int | np.integer) else steps)]
        except (TypeError, AttributeError, ValueError):
            raise ToushiError(f"steps must be an index, a list of indices or a slice; {steps!r:.80} came.") from None
        chosen = [step + count if step < 0 else step for step in asked]
        for step, name in zip(chosen, asked):
            if step not in self.files.lines:
                have = f"{self.steps[0]} to {self.steps[-1]}" if self.files.lines else "none"
                raise NotRecorded(f"Step {name} is not in this trace; {len(self.files.lines)} steps are ({have}).")
        if not chosen:
            raise ToushiError("At least one step is needed; the list of steps is empty.")
        return chosen

    def _extra(self, step: int, key: str) -> np.ndarray | None:
        (step,) = self.known_steps([step])
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

    def _encoder(self) -> Tensors:
        about = self.manifest.get("files", {}).get(layout.ENCODER)
        if about is None:
            raise NotRecorded("The text encoder was not recorded in this trace.")
        return self.files.named(layout.ENCODER, about["bytes"])

    def _numbered(self, file: Tensors, kind: str, branch: str) -> dict[int, str]:
        """Layer number -> key, in order, of `{kind}/{number}/{branch}`."""
        self.known_branch(branch)
        found = (re.fullmatch(rf"{kind}/([0-9]{{1,6}})/{branch}", key) for key in file.keys)
        numbers = sorted(int(match[1]) for match in found if match)
        if not numbers:
            raise NotRecorded(f"No {kind} of the text encoder was kept for the branch {branch}.")
        return {number: f"{kind}/{number}/{branch}" for number in numbers}

    def _positions(self, branch: str, length: int) -> dict[str, Any]:
        texts = {token.position: token.text for token in self.encoder_tokens(branch)}
        return {"token": np.arange(length), "text": ("token", [texts.get(i, "") for i in range(length)])}
