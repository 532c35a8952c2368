"""A model stored as the low-rank difference to another one: W + B A (LoRA; Hu et al. 2022, section 4.1)."""

from collections.abc import Mapping

from torch import Tensor

A, B = ".lora_A", ".lora_B"


def merge_updates(base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `base`, by name, with what `state` changes: `{weight}.lora_A` [rank, in] and `{weight}.lora_B`
    [out, rank] are added as B A, in fp32; any other tensor replaces the weight of its name, or is new."""
    merged = dict(base)
    for name, tensor in state.items():
        if name.endswith(A):
            weight = name.removesuffix(A)
            update = state[weight + B].float() @ tensor.float()
            merged[weight] = base[weight].float() + update.view_as(base[weight])
        elif not name.endswith(B):
            merged[name] = tensor
    return merged
