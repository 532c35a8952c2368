"""Loading text encoders, ours and those of the transformers library, so that `encode_layers` can run them.

An encoder's layers are the module list that is as long as the configuration says, so no table of families is needed.
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
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toushi.hooks.module_hooks import forward_parameters
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import explain_missing_library
from toushi.probe.base.path_error import checked_path
from toushi.probe.encoders.word_spans import tokens_from_offsets
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.text_encoder import TextEncoder
from toushi.probe.pipelines.encoder_paths import layer_list_path
from toushi.probe.pipelines.load import SHIPPED, best_device, load_own, shipped_models
from toushi.probe.pipelines.lora import file_sha256
from toushi.probe.pipelines.private_api import with_random_weights
from toushi.probe.text.alignment import Token

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}

Ids = Int[Tensor, "row token"]
States = Float[Tensor, "row token feature"]


class UnknownEncoder(ToushiError):
    """There is no text encoder of this name, or it cannot be read. The message says what to do."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder with its tokenizer, ready to run."""

    name: str
    layers: Sequence[nn.Module] = field(repr=False)
    forward: Callable[[Ids], States] = field(repr=False)  # ids without padding -> final states
    tokenize: Callable[[str], tuple[tuple[Token, ...], bool]] = field(repr=False)  # all tokens; whether some were cut
    limit: int  # the most tokens that it reads
    device: torch.device
    unk_token_id: int | None = None
    threads: int | None = None  # CPU threads to run it with; None: as many as torch takes
    weights_sha256: Callable[[], str | None] = field(
        default=lambda: None, repr=False
    )  # reads the files; None: no files


AnyEncoder = str | Path | MiniUNet | Encoder  # as users give one: a shipped model, a folder, a hub id, a loaded model


def open_encoder(
    encoder: AnyEncoder,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    untrained: int | None = None,
) -> Encoder:
    """The encoder of a shipped model, of a model's folder, or of a folder or hub id of the transformers library.

    With `untrained`, a seed, the same design has random weights, as before training. What is read from its states needs
    no learning: words, their places, and what random attention mixes. Raises UnknownEncoder.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, MiniUNet):
        return wrap_mini_unet(encoder)
    folder = encoder_folder(encoder)
    if (folder / "config.json").is_file() and "unet" in _read_json(folder / "config.json"):
        model = load_own(str(encoder) if str(encoder) in shipped_models() else str(folder), device, dtype=dtype)
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


def encoder_folder(encoder: str | Path) -> Path:
    """The folder with the files of an encoder. Those of a hub id are downloaded first. Raises UnknownEncoder."""
    name = str(encoder)
    if name in shipped_models():
        return SHIPPED / name
    if checked_path(encoder).is_dir():
        return Path(encoder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(encoder).parent.exists():
        return _download(name)
    near = get_close_matches(name, shipped_models(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownEncoder(
        f"no encoder {name!r}; {hint}there are: {', '.join(shipped_models())}; or a folder with a text encoder of the "
        "transformers library (config.json, tokenizer.json, model.safetensors), or its id on the hub, owner/name"
    )


def _download(name: str) -> Path:
    """The folder of a hub id in the local cache: configuration, tokenizer, safetensors, and nothing that is unpickled."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except Exception as error:  # of the hub, the net or the disk: many types, one meaning
        reason = " ".join(str(error).split())[:200]
        raise UnknownEncoder(f"no encoder {name!r} here, and the hub does not give it: {reason}") from None


def wrap_mini_unet(model: MiniUNet) -> Encoder:
    """The encoder of a mini-unet."""

    def tokenize(text: str) -> tuple[tuple[Token, ...], bool]:
        encoding = model.tokenizer.encode(text)
        return encoding.tokens, bool(encoding.lost)

    def forward(ids: Ids) -> States:
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

    It is on CUDA, MPS or the CPU, the first that is there, and in fp32 unless `dtype` is given. Nothing is downloaded,
    and no code of the folder runs. Raises UnknownEncoder.
    """
    folder = Path(folder)
    home = folder / "text_encoder" if (folder / "model_index.json").is_file() else folder
    if not (home / "config.json").is_file():
        raise UnknownEncoder(f"{home} holds no text encoder: expected a config.json, model.safetensors and a tokenizer")
    has_tokenizer = any(home.glob("*token*")) or any(home.glob("vocab*"))
    tokenizer_home = home if has_tokenizer else home.parent / home.name.replace("text_encoder", "tokenizer")
    transformers = _transformers()
    model: Any  # as transformers types `to`, it cannot be called
    with _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_home, **LOCAL_ONLY)
            model, missing = _load(transformers, home, dtype or torch.float32)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise UnknownEncoder(f"{home} cannot be loaded as a text encoder: {error}") from error
    missing = sorted(name for name in missing if "pooler" not in name)
    if missing:
        raise UnknownEncoder(
            f"{home} lacks {len(missing)} weights, for example {missing[0]}; they would be random. Save the whole encoder."
        )
    if untrained is not None:
        with _seeded(untrained), _quiet(transformers):
            model = with_random_weights(model).eval().requires_grad_(False)
    encoder = wrap_encoder(model.to(device or best_device()), tokenizer, folder.resolve().name)
    return encoder if untrained is not None else replace(encoder, weights_sha256=lambda: _sha256(home))


def wrap_encoder(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str | None = None) -> Encoder:
    """The encoder of a loaded model and a loaded fast tokenizer of the transformers library. Raises UnknownEncoder."""
    name = name or type(model).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UnknownEncoder(
            f"the tokenizer of {name}, {type(tokenizer).__name__}, gives no offsets, so the characters of a token are "
            "not known: save it as a fast one (tokenizer.json)"
        )
    device = model.device
    if getattr(model.config, "is_encoder_decoder", False) and model.get_encoder() is not model:
        model = model.get_encoder()
    model = _text_side(model, name)
    limit = min(tokenizer.model_max_length, _position_count(model))
    unk_token_id = getattr(tokenizer, "unk_token_id", None)

    def tokenize(text: str) -> tuple[tuple[Token, ...], bool]:
        encode = partial(tokenizer, text, return_offsets_mapping=True, return_special_tokens_mask=True)
        encoding = encode(verbose=False)
        cut = len(encoding["input_ids"]) > limit
        if cut:
            encoding = encode(truncation=True, max_length=limit)
        ids = encoding["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        return tokens_from_offsets(text, ids, pieces, encoding["offset_mapping"], encoding["special_tokens_mask"]), cut

    def forward(ids: Ids) -> States:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    return Encoder(name, _layers(model, name), forward, tokenize, limit, device, unk_token_id)


def _text_side(model: "PreTrainedModel", name: str) -> "PreTrainedModel":
    """The text model of a model of texts and images, such as Chinese-CLIP; any other model itself. Raises UnknownEncoder."""
    if model.config.get_text_config() is model.config:
        return model
    if isinstance(text_model := getattr(model, "text_model", None), nn.Module):
        return cast("PreTrainedModel", text_model)
    if "pixel_values" in forward_parameters(model) and not hasattr(model, "language_model"):
        raise UnknownEncoder(
            f"{name}, a {type(model).__name__}, reads images, too, and its text side is not found: expected it as "
            "`text_model`. Load that part yourself and pass it to wrap_encoder."
        )
    return model


def _sha256(home: Path) -> str:
    """The hash of the file of weights; for several files, the hash of their hashes in the order of names."""
    hashes = [file_sha256(path) for path in sorted(home.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _load(transformers: ModuleType, home: Path, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The text model, and the names of the weights that its file lacks."""
    config = transformers.AutoConfig.from_pretrained(home, **LOCAL_ONLY)
    kind, auto = getattr(config, "model_type", ""), transformers.AutoModel
    if kind == "clip":
        auto = transformers.CLIPTextModel
    elif getattr(config, "is_encoder_decoder", False) or _is_encoder_half(config):
        auto = transformers.AutoModelForTextEncoding
    options = {"dtype": dtype, "output_loading_info": True, **LOCAL_ONLY}
    try:
        model, report = auto.from_pretrained(home, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model, report = auto.from_pretrained(
            home, **options
        )  # its attention is not readable, and `encode_layers` says so
    return model.eval().requires_grad_(False), report["missing_keys"]


def _is_encoder_half(config: "PretrainedConfig") -> bool:
    """Whether a pipeline saved only the encoder of an encoder-decoder, as of T5: its config then says that it is whole."""
    return any(name.endswith("EncoderModel") for name in getattr(config, "architectures", None) or ())


def _layers(model: "PreTrainedModel", name: str) -> list[nn.Module]:
    path = layer_list_path(model)
    if path is None:
        raise UnknownEncoder(f"{name}, a {type(model).__name__}, has no list of layers that could be read")
    return list(model.get_submodule(path).children())


def _position_count(model: "PreTrainedModel") -> int:
    """The number of positions that the model has embeddings for. Those of RoBERTa begin behind that of its padding."""
    config = model.config.get_text_config()
    count = getattr(config, "max_position_embeddings", None) or 2**31
    for path, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if path.endswith("position_embeddings") and padding is not None:
            return count - padding - 1
    return count


def _transformers() -> ModuleType:
    with explain_missing_library():
        import transformers
    return transformers


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Inside, transformers prints no progress bars and reports. What matters in them is checked here."""
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


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownEncoder(f"{path} is not readable as JSON: {error}") from None
    return value if isinstance(value, dict) else {}
