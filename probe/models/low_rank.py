"""A model stored as the low-rank difference to another one: W + B A (LoRA; Hu et al. 2022, section 4.1)."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

A, B = ".lora_A", ".lora_B"


class LowRankUpdate(nn.Module):
    """A parametrization of a weight: its fixed value plus B A. B begins at zero, so that nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.A = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B @ self.A).view_as(weight)


def add_low_rank_updates(module: nn.Module, rank: int, whole: Collection[str] = ()) -> None:
    """Freezes each weight matrix of the module and gives it an update of this rank, where that has fewer numbers than
    the matrix. Everything else (biases, norms, small matrices, the modules named in `whole`) stays trainable itself."""
    for name, part in list(module.named_modules()):
        if not isinstance(part, nn.Linear | nn.Conv2d) or name in whole:
            continue
        if rank * sum(part.weight.flatten(1).shape) < part.weight.numel():
            part.weight.requires_grad_(False)
            parametrize.register_parametrization(part, "weight", LowRankUpdate(part.weight, rank))


def updates_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """What was trained, by the names of the plain module: `{weight}.lora_A`, `{weight}.lora_B`, or the whole tensor."""
    state = {}
    for name, tensor in module.state_dict().items():
        name = name.replace(".parametrizations.weight.0.A", f".weight{A}")
        name = name.replace(".parametrizations.weight.0.B", f".weight{B}")
        if "parametrizations" not in name:  # the frozen weight
            state[f"{prefix}.{name}"] = tensor
    return state


def merge_updates(base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    """The weights of `base` with what `state` changes of them or adds, as `updates_of` gave it; updated ones in fp32."""
    merged = dict(base)
    for name, tensor in state.items():
        if name.endswith(A):
            weight = name.removesuffix(A)
            update = state[weight + B].float() @ tensor.float()
            merged[weight] = base[weight].float() + update.view_as(base[weight])
        elif not name.endswith(B):
            merged[name] = tensor
    return merged
