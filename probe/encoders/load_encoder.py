"""Text encoders, ours and those of the transformers library, opened so that `encode_layers` can run them.

Which modules are an encoder's layers is found by counting, so no table of families is needed: it is the list with as many
modules as the configuration has layers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import missing_library_named
from toushi.probe.base.path_error import checked_path
from toushi.probe.encoders.word_spans import tokens_of
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.text_encoder import TextEncoder
from toushi.probe.pipelines.load import SHIPPED, best_device, load, shipped_models
from toushi.probe.pipelines.lora import sha256
from toushi.probe.pipelines.private_api import with_random_weights
from toushi.probe.text.alignment import Token

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OURS_ONLY = {"local_files_only": True, "trust_remote_code": False}


class UnknownEncoder(ToushiError):
    """No text encoder is to be had under this name, or it is one that cannot be read."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder with its tokenizer, ready to run."""

    name: str
    layers: Sequence[nn.Module] = field(repr=False)
    forward: Callable[[Tensor], Tensor] = field(repr=False)  # ids [row, position], none of them padding -> final states
    tokenize: Callable[[str], tuple[tuple[Token, ...], bool]] = field(
        repr=False
    )  # with specials; whether the text was cut
    limit: int  # tokens that it reads at most
    device: torch.device
    unknown: int | None = None  # the id of <unk>
    threads: int | None = None  # CPU threads to run it with; None: as many as torch takes
    weights_sha256: Callable[[], str | None] = field(
        default=lambda: None, repr=False
    )  # reads whole files; None: no files


AnyEncoder = str | Path | MiniUNet | Encoder  # as users name one: a shipped model, a folder, a hub id, a loaded model


def open_encoder(
    which: AnyEncoder,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    untrained: int | None = None,
) -> Encoder:
    """The encoder of a shipped model, of a model's folder, or of a folder or hub id of the transformers library.

    `untrained`: a seed; the same design then has weights as they are before training. What can be read off its states
    needs no learning: the words, their places, and what random attention mixes in.
    """
    if isinstance(which, Encoder):
        return which
    if isinstance(which, MiniUNet):
        return wrap_mini_unet(which)
    folder = folder_of(which)
    if (folder / "config.json").is_file() and "unet" in _json(folder / "config.json"):
        model = load(str(which) if str(which) in shipped_models() else str(folder), device, dtype)
        if untrained is not None:
            with _seeded(untrained):
                model.encoder = TextEncoder(model.config.text).to(model.device, model.dtype).eval()
                model.weights_sha256 = None
        return wrap_mini_unet(model)
    return load_pretrained(folder, device, dtype, untrained)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def folder_of(which: str | Path) -> Path:
    """Where the files of an encoder lie: of a shipped model, of a folder; those of a hub id are fetched first."""
    if str(which) in shipped_models():
        return SHIPPED / str(which)
    if checked_path(which).is_dir():
        return Path(which)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(which)) and not Path(which).parent.exists():
        return _fetched(str(which))
    near = get_close_matches(str(which), shipped_models(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownEncoder(
        f"no encoder {str(which)!r}; {hint}there are: {', '.join(shipped_models())}; or a folder with a text encoder of the "
        "transformers library (config.json, tokenizer.json, model.safetensors), or its id on the hub, owner/name"
    )


def _fetched(name: str) -> Path:
    """The folder of a hub id in the local cache: configuration, tokenizer, safetensors; never what would be unpickled."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of the hub, of the net, of the disk: many types, one meaning
        raise UnknownEncoder(f"no encoder {name!r} here, and the hub does not give it: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def wrap_mini_unet(model: MiniUNet) -> Encoder:
    """The encoder of a mini-unet."""

    def tokenize(text: str) -> tuple[tuple[Token, ...], bool]:
        encoding = model.tokenizer.encode(text)
        return encoding.tokens, bool(encoding.lost)

    def forward(ids: Tensor) -> Tensor:
        return model.encoder(ids, torch.ones_like(ids, dtype=torch.bool))

    layers = list(model.encoder.layers)
    sha256 = model.weights_sha256
    return Encoder(
        model.name,
        layers,
        forward,
        tokenize,
        model.tokenizer.length,
        model.device,
        threads=model.threads,
        weights_sha256=lambda: sha256,
    )


# --- encoders of the transformers library ---------------------------------------------------------------


def load_pretrained(
    folder: Path | str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    untrained: int | None = None,
) -> Encoder:
    """The text encoder in a folder that transformers or diffusers saved; of a whole pipeline its `text_encoder`.

    On CUDA, MPS or the CPU, whichever there is first, in fp32 unless `dtype` says otherwise. Nothing is downloaded
    and no code of the folder is run.
    """
    folder = Path(folder)
    home = folder / "text_encoder" if (folder / "model_index.json").is_file() else folder
    if not (home / "config.json").is_file():
        raise UnknownEncoder(f"{home} holds no text encoder: expected a config.json, model.safetensors and a tokenizer")
    has_tokenizer = any(home.glob("*token*")) or any(home.glob("vocab*"))
    tokenizer_home = home if has_tokenizer else home.parent / home.name.replace("text_encoder", "tokenizer")
    transformers = _transformers()
    with _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_home, **OURS_ONLY)
            model, missing = _load(transformers, home, dtype or torch.float32)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise UnknownEncoder(f"{home} cannot be loaded as a text encoder: {error}") from error
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise UnknownEncoder(
            f"{home} lacks {len(lacking)} weights, {lacking[0]} for one; they would be random, so it is not a whole encoder"
        )
    if untrained is not None:
        with _seeded(untrained), _quiet(transformers):
            model = with_random_weights(model).eval().requires_grad_(False)
    found = wrap_encoder(model.to(device or best_device()), tokenizer, folder.resolve().name)
    return found if untrained is not None else replace(found, weights_sha256=lambda: _sha256(home))


def wrap_encoder(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str | None = None) -> Encoder:
    """An encoder made of a model and a fast tokenizer of the transformers library, both loaded already."""
    name = name or type(model).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UnknownEncoder(
            f"the tokenizer of {name}, {type(tokenizer).__name__}, gives no offsets, so its tokens cannot be told from "
            "characters: save it as a fast one (tokenizer.json)"
        )
    if getattr(model.config, "is_encoder_decoder", False) and model.get_encoder() is not model:
        model = model.get_encoder()
    limit = min(tokenizer.model_max_length, _positions(model))
    unknown = getattr(tokenizer, "unk_token_id", None)

    def tokenize(text: str) -> tuple[tuple[Token, ...], bool]:
        encode = partial(tokenizer, text, return_offsets_mapping=True, return_special_tokens_mask=True)
        encoding = encode(verbose=False)
        cut = len(encoding["input_ids"]) > limit
        if cut:
            encoding = encode(truncation=True, max_length=limit)
        ids = encoding["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        return tokens_of(text, ids, pieces, encoding["offset_mapping"], encoding["special_tokens_mask"]), cut

    def forward(ids: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    return Encoder(name, _layers(model, name), forward, tokenize, limit, model.device, unknown)


def _sha256(home: Path) -> str:
    """Of the one file of weights; of several, of their hashes in the order of their names."""
    found = [sha256(path) for path in sorted(home.glob("*.safetensors"))]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def _load(transformers: ModuleType, home: Path, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The text model with the names of the weights that its file lacks."""
    config = transformers.AutoConfig.from_pretrained(home, **OURS_ONLY)
    kind, auto = getattr(config, "model_type", ""), transformers.AutoModel
    if kind == "clip":
        auto = transformers.CLIPTextModel
    elif getattr(config, "is_encoder_decoder", False) or _saved_alone(config):
        auto = transformers.AutoModelForTextEncoding
    options = {"dtype": dtype, "output_loading_info": True, **OURS_ONLY}
    try:
        model, report = auto.from_pretrained(home, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model, report = auto.from_pretrained(
            home, **options
        )  # its attention is not readable, and `encode_layers` says so
    return model.eval().requires_grad_(False), report["missing_keys"]


def _saved_alone(config: "PretrainedConfig") -> bool:
    """Whether it is the encoder half of a model, as pipelines save a T5's, whose configuration then denies the rest."""
    return any(name.endswith("EncoderModel") for name in getattr(config, "architectures", None) or ())


def _layers(model: "PreTrainedModel", name: str) -> list[nn.Module]:
    config = model.config.get_text_config()
    count = next(
        (getattr(config, key) for key in ("num_hidden_layers", "num_layers", "n_layer") if hasattr(config, key)), 0
    )
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and not {"visual", "vision"} & set(path.split("."))
    }
    if not lists:
        raise UnknownEncoder(f"{name}, a {type(model).__name__}, has no list of {count} layers that could be read")
    return list(next(iter(lists.values())))


def _positions(model: "PreTrainedModel") -> int:
    """Positions that the model has an embedding for; those of RoBERTa's kind begin behind its padding's."""
    config = model.config.get_text_config()
    count = getattr(config, "max_position_embeddings", None) or 2**31
    for path, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if path.endswith("position_embeddings") and padding is not None:
            return count - padding - 1
    return count


def _transformers() -> ModuleType:
    with missing_library_named():
        import transformers
    return transformers


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without the bars and reports that loading prints; what of them matters is checked here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownEncoder(f"{path} is not readable as JSON: {error}") from None
    return found if isinstance(found, dict) else {}
