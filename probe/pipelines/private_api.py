"""Every private name of diffusers and transformers that Toushi uses, each behind a function of ours.

They may change in any release: `tests/pipelines/test_private_api.py` says what stops working then.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from transformers import PreTrainedModel

Encoder = TypeVar("Encoder", bound="PreTrainedModel")

# --- diffusers ---


def qwen_image_masks_text() -> bool:
    """Whether Qwen-Image's denoiser leaves out the padding of shorter prompts in a batch, as it does since 0.37."""
    major, minor = metadata.version("diffusers").split(".")[:2]
    return (int(major), int(minor)) >= (0, 37)


def progress_bar_config(pipeline: object) -> dict[str, object]:
    """What `set_progress_bar_config` was called with."""
    return getattr(pipeline, "_progress_bar_config", {})


def execution_device(pipeline: object) -> torch.device | None:
    """Where a pipeline computes; with offload that is not where its weights wait. None for models of our own."""
    return getattr(pipeline, "_execution_device", None)


def parts_without_offload(pipeline: "DiffusionPipeline") -> Iterable[str]:
    """Names of the components that sequential offload leaves on the device."""
    return pipeline._exclude_from_cpu_offload


def has_repeated_blocks(denoiser: nn.Module) -> bool:
    """Whether `denoiser.compile_repeated_blocks()` knows its blocks."""
    return bool(getattr(denoiser, "_repeated_blocks", None))


def attention_backend(processor: object) -> str:
    """The name of the attention backend of a processor; "native" is PyTorch's own."""
    backend = getattr(processor, "_attention_backend", None)
    if backend is None and hasattr(processor, "_attention_backend"):  # it leaves the choice to diffusers
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        backend = _AttentionBackendRegistry.get_active_backend()[0]
    return "native" if backend is None else str(getattr(backend, "value", backend))


@contextmanager
def native_backend(processor: object) -> Iterator[None]:
    """Inside the `with` this processor computes by PyTorch's own attention."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    before = processor._attention_backend  # pyright: ignore[reportAttributeAccessIssue]
    processor._attention_backend = AttentionBackendName.NATIVE  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        processor._attention_backend = before  # pyright: ignore[reportAttributeAccessIssue]


def set_native_processor(module: nn.Module, name: str) -> None:
    """Gives the attention module a new processor of diffusers, by the name of its class."""
    module.processor = getattr(import_module("diffusers.models.attention_processor"), name)()


def is_context_parallel(processor: object) -> bool:
    """Whether a processor splits its attention over several devices."""
    return getattr(processor, "_parallel_config", None) is not None


# --- transformers ---


def module_path(encoder: nn.Module, path: str) -> str | None:
    """The path of a module of a text encoder as the installed transformers has it. None if it has no such module.

    The modules of a CLIPTextModel lie below `text_model` in transformers 4, and in itself since.
    """
    return next((each for each in (path, f"text_model.{path}") if has_module(encoder, each)), None)


def has_module(module: nn.Module, path: str) -> bool:
    """Whether the module has a submodule of this path."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def attention_implementation(attention: nn.Module, encoder: nn.Module) -> str:
    """The name of the attention function of an encoder's layer: "sdpa", "eager", ...

    T5's attention names none in transformers 4, where its encoder does; models outside of transformers need not.
    """
    config = getattr(attention, "config", None)
    if config is None and type(attention).__module__.startswith("transformers."):
        config = encoder.config
    return getattr(config, "_attn_implementation", "sdpa")


def with_random_weights(model: Encoder) -> Encoder:
    """A model of the same class and configuration, with weights as they are before training."""
    return type(model)._from_config(model.config)
