"""`xarray.open_datatree(folder, engine="toushi")`: a trace as a tree of datasets, read when values are asked for.

xarray imports this module whenever it guesses how to open something, so it imports the reader only to open a trace.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr
from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    from toushi.probe.trace.selection import WordSpec


class ToushiBackend(BackendEntrypoint):
    """A trace of a picture has one node for each site, and `encoder`; a trace of texts one for each text.

    `words` puts words in place of tokens: a list of them, or True for all. `group` is the node for `open_dataset`.
    """

    description = "Traces of Toushi: attention maps of a picture, or what a text encoder made of texts"
    supports_groups = True

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Whether this is the folder of a trace, by its manifest."""
        if not isinstance(filename_or_obj, str | os.PathLike) or not os.path.isdir(filename_or_obj):
            return False
        from toushi.probe.trace.trace_format import FORMAT, format_of

        return format_of(Path(filename_or_obj)) == FORMAT

    def open_groups_as_dict(
        self,
        filename_or_obj: object,
        *,
        drop_variables: str | Iterable[str] | None = None,
        words: "bool | Sequence[WordSpec]" = False,
    ) -> dict[str, xr.Dataset]:
        """Path of the node -> its dataset. Raises ToushiError for what is no trace, or a damaged one."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            raise TypeError(f"expected the folder of a trace, but {type(filename_or_obj).__name__} came")
        datasets = _datasets(Path(filename_or_obj), words)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return {path: dataset.drop_vars(dropped, errors="ignore") for path, dataset in datasets.items()}

    def open_datatree(
        self,
        filename_or_obj: object,
        *,
        drop_variables: str | Iterable[str] | None = None,
        words: "bool | Sequence[WordSpec]" = False,
    ) -> xr.DataTree:
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, words=words)
        return xr.DataTree.from_dict(groups)

    def open_dataset(
        self,
        filename_or_obj: object,
        *,
        drop_variables: str | Iterable[str] | None = None,
        words: "bool | Sequence[WordSpec]" = False,
        group: str | None = None,
    ) -> xr.Dataset:
        """One node of the tree, by default the root, which has only attributes. Raises NotRecorded for any other."""
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, words=words)
        name = (group or "").strip("/") or "/"
        if name not in groups:
            from toushi.probe.trace.trace_errors import NotRecorded

            near = difflib.get_close_matches(name, groups, n=3, cutoff=0.3) or list(groups)[1:4]
            raise NotRecorded(f"This trace has no node {name!r}. Nearest: {', '.join(near) or 'none'}.")
        return groups[name]


def _datasets(folder: Path, words: "bool | Sequence[WordSpec]") -> dict[str, xr.Dataset]:
    from toushi.probe.trace.encoder_datasets import choose_text_words, encoder_attributes, encoder_datasets
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace
    from toushi.probe.trace.picture_datasets import choose_words, picture_attributes, picture_datasets

    every = None if words is True else words or ()
    if is_encoder_trace(folder):
        texts = open_encoder_trace(folder)
        chosen = None if words is False else choose_text_words(texts, every)[0]
        return {"/": xr.Dataset(attrs=encoder_attributes(texts)), **encoder_datasets(texts, chosen)}
    trace = open_trace(folder)
    chosen = None if words is False else choose_words(trace, every)[0]
    return {"/": xr.Dataset(attrs=picture_attributes(trace)), **picture_datasets(trace, chosen)}
