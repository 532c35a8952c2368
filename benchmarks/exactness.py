"""What is read against a plain softmax in fp64 of the same queries and keys, at every site that attends."""

import torch

from hooks.attention import Call, Watch
from probe.models.families import family_of
from probe.models.mini_unet import MiniUNet

PROMPT = "左边是猫，右边是月亮，夜晚"


def plain(call: Call) -> torch.Tensor:
    """softmax(q k^T * scale + mask) [row, head, column, query] in fp64."""
    what = call.what
    scores = what.query.double() @ what.key.double().transpose(-1, -2) * what.scale
    if what.mask is not None:
        scores = scores.masked_fill(~what.mask, -torch.inf) if what.mask.dtype == torch.bool else scores + what.mask
    return scores.softmax(-1).transpose(-1, -2)


def differences(model: MiniUNet) -> tuple[dict[str, float], float]:
    """By site the largest difference of a probability from the plain softmax; and what storing in fp16 adds."""
    worst: dict[str, float] = {}
    rounded = [0.0]

    def see(call: Call) -> None:
        read = call.probabilities()
        worst[call.site] = max(worst.get(call.site, 0.0), (read - plain(call)).abs().max().item())
        rounded[0] = max(rounded[0], (read.half() - read).abs().max().item())

    sites = {name: site.module for name, site in family_of(model).sites(model).items()}
    with Watch(sites, see):
        model.sample(PROMPT, steps=3)
    return worst, rounded[0]


def measure(model: MiniUNet, rounds: int) -> list[dict]:
    rows = []
    for dtype, goal in ((torch.float32, 2e-6), (torch.bfloat16, 2e-4)):
        worst, rounded = differences(model.to(dtype))
        site = max(worst, key=worst.__getitem__)
        numbers = dict(difference=f"{worst[site]:.1e}", goal=f"{goal:.1e}", fp16_storage_adds=f"{rounded:.1e}")
        rows.append(dict(dtype=str(dtype).removeprefix("torch."), sites=len(worst), worst_site=site, **numbers))
    model.to(torch.float32)
    return rows
