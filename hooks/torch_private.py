"""Every private name of PyTorch that Toushi uses, each behind a function of ours.

PyTorch may change or remove them in any release. `tests/hooks/test_torch_private.py` then names what stops working.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model")

# `torch.nn.functional.scaled_dot_product_attention` as PyTorch ships it, even where a library has replaced it.
builtin_attention = torch._C._nn.scaled_dot_product_attention  # pyright: ignore[reportAttributeAccessIssue]


# --- attention kernels: the output and its log-sum-exp, in the shapes that PyTorch gives ---


def flash_attention_cpu(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention.default(
        query, key, value, 0.0, causal, False, scale=scale
    )[:2]


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )[:2]


def cudnn_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention.default(
        query, key, value, bias, True, 0.0, causal, False, scale=scale
    )[:2]


def fused_attention_choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> int:
    """The value of the `SDPBackend` that PyTorch would take for this call."""
    return torch._fused_sdp_choice(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=enable_gqa
    )


# --- tensors and modules ---


def tensor_version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; 0 for a tensor of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def forward_hooks(module: nn.Module) -> list[Callable]:
    """The forward hooks and forward pre-hooks of the module itself."""
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def uncompiled(model: Model) -> Model:
    """The module that `torch.compile(module)` wrapped. A module that was not compiled, or a pipeline, is returned as it is."""
    return getattr(model, "_orig_mod", model)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile compiled the module, or a module inside it."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in module.modules())


# --- training ---


def copy_each_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target, in place."""
    torch._foreach_copy_(targets, sources)


def lerp_each_(targets: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Moves each target towards its end by `weight`, in place."""
    torch._foreach_lerp_(targets, ends, weight)


def has_bf16_matrix_units() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware (Intel AMX)."""
    return torch.cpu._is_amx_tile_supported()
