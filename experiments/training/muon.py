"""Muon for matrices, AdamW for the rest, behind one `step`.

Muon (Jordan 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by five Newton-Schulz
iterations; scaled as Liu et al. 2025 do (0.2 sqrt(max side)), AdamW's learning rate can serve both. torch has Muon
too, but iterates in bfloat16 everywhere, which a CPU without bf16 units emulates, and it leaves convolutions out.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from toushi.hooks.torch_private import has_bf16_matrix_units


def iteration_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type != "cpu" or has_bf16_matrix_units() else torch.float32


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The orthogonal factor of each matrix [n, rows, columns], singular values within about 0.7..1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if transposed else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(iteration_dtype(x.device))
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices)
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # parameters with their gradients
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.flatten(1).shape, []).append((p, p.grad))
            for same in by_shape.values():
                updates = []
                for p, grad in same:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(average, group["momentum"]).flatten(1))  # Nesterov's look ahead
                scale = 0.2 * max(updates[0].shape) ** 0.5 * group["lr"]
                for (p, _), update in zip(same, orthogonalize(torch.stack(updates))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(update.view_as(p), alpha=scale)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Hidden weights go to Muon; embeddings, the first and last convolution, heads and vectors to AdamW."""
    outer = ("embed", "position", "conv_in", "conv_out", "time", "namer", "reader.place", "reader.out")
    outer += ("final_layer", "pad_token")  # of a DiT
    return parameter.ndim >= 2 and not any(part in name for part in outer)


def make_optimizers(
    named_parameters: Iterable[tuple[str, Tensor]], lr: float, adam_share: float = 1.0, decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """Muon with the learning rate `lr`, AdamW with a share of it; each group says its `share`."""
    matrices, others = [], []
    for name, parameter in named_parameters:
        (matrices if is_matrix(name, parameter) else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=lr * adam_share, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    found = [Muon(matrices, lr=lr, weight_decay=decay), adam]
    for optimizer, share in zip(found, (1.0, adam_share)):
        for group in optimizer.param_groups:
            group["share"] = share
    return found


def take_step(optimizers: Iterable[torch.optim.Optimizer], lr: float, factor: float = 1.0) -> None:
    """Takes one step of each optimizer, with its share of the learning rate `lr`, times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"] * factor
        optimizer.step()
        optimizer.zero_grad()
