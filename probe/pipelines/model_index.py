"""The index files in a pipeline's folder: its components, and the weight files of each."""

import json
from pathlib import Path
from typing import NamedTuple

from toushi.probe.base.errors import ToushiError


class UnknownModel(ToushiError):
    """No model has this name, or its folder cannot be read."""


class ModelIndex(NamedTuple):
    """What model_index.json says of a pipeline."""

    kind: str  # its class
    components: dict[str, tuple[str | None, str | None]]  # library and class of each


def read_model_index(folder: Path) -> ModelIndex:
    """The index of a pipeline's folder. Raises UnknownModel if it cannot be read or names no pipeline class."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{folder} has no model_index.json that can be read ({error}): download it again") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UnknownModel(
            f"{folder} has no diffusers pipeline: its model_index.json names no pipeline class (_class_name). Expected "
            "a folder that save_pretrained wrote, or a downloaded repository: download it again"
        )
    pairs = {name: pair for name, pair in index.items() if isinstance(pair, list) and len(pair) == 2}
    components = {name: (pair[0], pair[1]) for name, pair in pairs.items() if Path(name).name == name}
    return ModelIndex(index["_class_name"], components)


def check_weight_files(folder: Path) -> None:
    """Raises UnknownModel if weight files are missing that the folder's index files name."""
    for part in read_model_index(folder).components:
        for index in sorted((folder / part).glob("*.safetensors.index.json")):
            names = shard_names(index)
            if missing := [name for name in names if not (folder / part / name).is_file()]:
                raise UnknownModel(
                    f"{folder / part} lacks {len(missing)} of its {len(names)} weight files, among them {missing[0]}: "
                    "download them again (the folder has only part of the model)"
                )


def shard_names(index: Path) -> list[str]:
    """Names of the weight files that an index lists. Raises UnknownModel if they are not beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnknownModel(f"{index} cannot be read ({error}): download it again") from None
    if outside := [name for name in names if Path(name).name != name]:
        raise UnknownModel(f"{index} names {outside[0]!r}, which is not beside it: do not trust this folder")
    return names


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files that are in the folder, and the names of all that should be."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        names = shard_names(index)
    else:
        present = sorted(path.name for path in folder.glob("*.safetensors"))
        usual = [name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors") if name in present]
        names = usual[:1] or present[:1] or ["model.safetensors"]  # other files are variants of the same weights
    return [folder / name for name in names if (folder / name).is_file()], names
