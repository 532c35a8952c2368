"""The private names of diffusers and transformers that `private_api` uses: that they are there and what they mean."""

import copy
import inspect
from importlib import metadata

import diffusers
import pytest
import torch
import transformers
from diffusers.models import attention_dispatch
from torch import nn

from tests.pipelines.tiny import made
from toushi.hooks.attention import AttentionHook
from toushi.probe.pipelines import private_api
from toushi.probe.pipelines.registry import family_of


def need(holds, library: str, name: str, lost: str) -> None:
    if not holds:
        pytest.fail(f"{library} {metadata.version(library)} has no {name}, or it means something else now: {lost}")


@pytest.fixture(scope="module")
def sdxl():
    return made("stable-diffusion-xl")


@pytest.fixture(scope="module")
def z_image():
    return made("z-image")


def processor(pipeline):
    return next(module.processor for module in pipeline.transformer.modules() if hasattr(module, "processor"))


def test_the_execution_device(sdxl):
    lost = "the manifest names the device where offloaded weights wait, and cached embeddings go there"
    found = private_api.execution_device(sdxl)
    need(isinstance(found, torch.device) and found.type == "cpu", "diffusers", "pipeline._execution_device", lost)
    assert private_api.execution_device(nn.Linear(1, 1)) is None


def test_the_progress_bar(sdxl):
    lost = "the image-to-image pipeline of trace_picture shows a bar that was turned off"
    sdxl.set_progress_bar_config(disable=True)
    need(private_api.progress_bar_config(sdxl) == {"disable": True}, "diffusers", "pipeline._progress_bar_config", lost)


def test_parts_without_offload(sdxl):
    lost = "load(offload='sequential') offloads parts that diffusers leaves on the device"
    need(
        isinstance(getattr(sdxl, "_exclude_from_cpu_offload", None), list),
        "diffusers",
        "pipeline._exclude_from_cpu_offload",
        lost,
    )
    names = set(private_api.parts_without_offload(diffusers.StableDiffusionPipeline))
    need("safety_checker" in names, "diffusers", "pipeline._exclude_from_cpu_offload", lost)


def test_repeated_blocks(sdxl, z_image):
    lost = "load(compile=True) compiles lists of modules in place of the blocks that diffusers names"
    need(
        private_api.has_repeated_blocks(sdxl.unet) and private_api.has_repeated_blocks(z_image.transformer),
        "diffusers",
        "denoiser._repeated_blocks",
        lost,
    )
    assert callable(sdxl.unet.compile_repeated_blocks) and not private_api.has_repeated_blocks(nn.Linear(1, 1))


def test_the_attention_backend(sdxl, z_image):
    lost = "attention on a backend that cannot be read is not refused before sampling"
    found = processor(z_image)
    need(hasattr(found, "_attention_backend"), "diffusers", "processor._attention_backend", lost)
    assert private_api.attention_backend(found) == "native"
    assert private_api.attention_backend(sdxl.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor)
    registry = getattr(attention_dispatch, "_AttentionBackendRegistry", None)
    need(hasattr(registry, "get_active_backend"), "diffusers", "_AttentionBackendRegistry.get_active_backend", lost)
    with attention_dispatch.attention_backend("_native_math"):
        active = private_api.attention_backend(found)
    need(active == "_native_math", "diffusers", "_AttentionBackendRegistry.get_active_backend", lost)
    z_image.transformer.set_attention_backend("_native_math")
    try:
        need(private_api.attention_backend(found) == "_native_math", "diffusers", "processor._attention_backend", lost)
    finally:
        z_image.transformer.reset_attention_backend()


def test_context_parallel(z_image):
    lost = "an attention that is split over devices is not refused before sampling"
    need(hasattr(processor(z_image), "_parallel_config"), "diffusers", "processor._parallel_config", lost)
    assert not private_api.is_context_parallel(processor(z_image))


def test_the_attention_implementation(z_image):
    lost = "the encoder's attention is taken for readable where it is not"
    config = z_image.text_encoder.config
    for name in ("sdpa", "eager"):
        model = transformers.Qwen3Model._from_config(copy.deepcopy(config), attn_implementation=name)
        found = private_api.attention_implementation(model.layers[0].self_attn, model)
        need(found == name, "transformers", "config._attn_implementation", lost)
    assert private_api.attention_implementation(nn.Linear(1, 1), model) == "sdpa"


def test_a_t5_that_attends_elsewhere_is_not_taken_for_readable():
    """In transformers 4 it has an attention of its own, which calls no function that could be replaced."""
    encoder = made("pixart").text_encoder
    attention, calls = encoder.encoder.block[0].layer[0].SelfAttention, []
    with AttentionHook({"attention": attention}, calls.append):
        encoder(input_ids=torch.tensor([[5, 6, 1]]))
    assert (private_api.attention_implementation(attention, encoder) == "sdpa") == bool(calls)


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "pixart"])
def test_paths_of_text_encoders(name):
    """Wherever the installed transformers has its modules."""
    model = made(name)
    family = family_of(model)
    lost = "the layers of the text encoder are not found"
    assert family.layers is not None
    for path in (family.embeddings, family.layers):
        component, _, rest = path.partition(".")
        try:
            getattr(model, component).get_submodule(rest)
        except AttributeError:
            need(False, "transformers", path, lost)


def test_random_weights(z_image):
    lost = "encoders are not compared with untrained ones of the same design"
    encoder = z_image.text_encoder
    need(inspect.ismethod(getattr(type(encoder), "_from_config", None)), "transformers", "Model._from_config", lost)
    found = private_api.with_random_weights(encoder)
    assert type(found) is type(encoder) and found.config.to_dict().keys() == encoder.config.to_dict().keys()
    weights = [next(iter(model.layers[0].mlp.parameters())) for model in (found, encoder)]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)
