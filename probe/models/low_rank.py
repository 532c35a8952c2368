"""A model stored as the low-rank difference to another one: W + B A (LoRA; Hu et al. 2022, section 4.1)."""

from collections.abc import Mapping

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


def add_low_rank_updates(module: nn.Module, rank: int) -> None:
    """Freezes each weight matrix of the module and gives it an update of this rank, where that has fewer numbers than
    the matrix. Whatever else there is (biases, norms, small matrices) stays trainable as it is."""
    for part in list(module.modules()):
        if isinstance(part, nn.Linear | nn.Conv2d) and rank * sum(part.weight.flatten(1).shape) < part.weight.numel():
            part.weight.requires_grad_(False)
            parametrize.register_parametrization(part, "weight", LowRankUpdate(part.weight, rank))


def low_rank_state(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """What was trained, by the names of the plain module: `{weight}.lora_A`, `{weight}.lora_B`, or the whole tensor."""
    state = {}
    for name, tensor in module.state_dict().items():
        name = name.replace(".parametrizations.weight.0.A", f".weight{A}")
        name = name.replace(".parametrizations.weight.0.B", f".weight{B}")
        if "parametrizations" not in name:  # the frozen weight
            state[f"{prefix}.{name}"] = tensor
    return state


def merge_low_rank(base: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    """The weights of `base` (fp32 or wider) with what `state` changes of them, as `low_rank_state` gave it."""
    merged = dict(base)
    for name, tensor in state.items():
        if name.endswith(A):
            weight = name.removesuffix(A)
            update = state[weight + B].float() @ tensor.float()
            merged[weight] = base[weight].float() + update.view_as(base[weight])
        elif not name.endswith(B):
            merged[name] = tensor
    return merged
