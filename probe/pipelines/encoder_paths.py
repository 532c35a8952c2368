"""Where the layers of a pipeline's text encoder are, if it is another encoder than its family is released with.

Taiyi, a Stable Diffusion pipeline, has a BertModel, and AltDiffusion an XLM-R. Their layers are found as for any encoder.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import nn

from toushi.probe.pipelines.diffusers_family import EncoderPaths
from toushi.probe.pipelines.family import Family, Model, unwrap
from toushi.probe.pipelines.private_api import module_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_encoder_paths(family: Family, model: Model) -> Family:
    """The family with the paths of the model's own text encoder. Without `layers` if that encoder has no list of layers."""
    component, _, _ = (family.layers or "").partition(".")
    encoder = unwrap(getattr(model, component, None)) if component else None
    if not isinstance(encoder, nn.Module):
        return family
    first, path = (module_path(encoder, getattr(family, name).partition(".")[2]) for name in ("embeddings", "layers"))
    if first is not None and path is not None:
        return replace(family, embeddings=f"{component}.{first}".rstrip("."), layers=f"{component}.{path}")
    if (paths := encoder_paths(component, encoder)) is not None:
        return replace(family, **paths)
    reason = f"a {type(encoder).__name__} has no list of layers that could be read"
    return replace(family, layers=None, unrecorded_attention={**family.unrecorded_attention, f"{component}.*": reason})


def encoder_paths(component: str, encoder: nn.Module) -> EncoderPaths | None:
    """The paths of the encoder's embeddings, layers, and attention in a layer. None if one of them is not found."""
    layers = layer_list_path(encoder) if hasattr(encoder, "config") else None
    if layers is None:
        return None
    names = {type(module).__name__: path for path, module in encoder.get_submodule(f"{layers}.0").named_modules()}
    attention = next((path for kind, path in names.items() if kind.endswith(("SelfAttention", "Attention"))), None)
    words = cast("PreTrainedModel", encoder).get_input_embeddings()
    embeddings = next((path for path, module in encoder.named_modules() if module is words), None)
    if attention is None or embeddings is None:
        return None
    parent = embeddings.rpartition(".")[0]
    if type(encoder.get_submodule(parent)).__name__.endswith("Embeddings"):  # it adds the positions
        embeddings = parent
    return {
        "embeddings": f"{component}.{embeddings}",
        "layers": f"{component}.{layers}",
        "layer_attention": attention,
    }


def layer_list_path(encoder: nn.Module) -> str | None:
    """The path of the module list that is as long as the encoder's configuration says. None if there is none."""
    config = cast("PreTrainedModel", encoder).config.get_text_config()
    keys = ("num_hidden_layers", "num_layers", "n_layer")
    count = next((getattr(config, key) for key in keys if hasattr(config, key)), 0)
    for path, module in encoder.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != count or {"visual", "vision"} & {*path.split(".")}:
            continue
        if not any(isinstance(layer, nn.ModuleList) for layer in module):
            return path
    return None
