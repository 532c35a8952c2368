"""Low-rank updates of a module's weights while they are trained; `probe/models/low_rank.py` merges what was saved."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from toushi.probe.models.low_rank import A, B


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
