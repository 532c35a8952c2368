"""Weights that wait in main memory and visit the device when they are needed: three ways, alike for every engine.

accelerate and diffusers do the moving, around the modules' `forward`; what a module computes stays the same.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn


def offload(
    parts: Mapping[str, nn.Module],
    denoiser: str,
    device: torch.device,
    way: str,
    order: Iterable[str] = (),
    whole: Iterable[str] = (),
) -> None:
    """Lets these parts of a model visit `device`: "model" by whole parts, which take turns in this `order`; "group"
    by the denoiser's blocks, and other parts by layers; "sequential" by layers. Parts in `whole` stay there."""
    for name in whole:
        if name in parts:
            parts[name].to(device)
    parts = {name: part for name, part in parts.items() if name not in set(whole)}
    if way == "model":
        _take_turns([parts[name] for name in order if name in parts], device)
        return
    for name, part in parts.items():
        if way == "sequential":
            from accelerate import cpu_offload

            cpu_offload(part, device, offload_buffers=any(True for _ in part.parameters(recurse=False)))
            continue
        from diffusers.hooks import apply_group_offloading

        blocks = name == denoiser and any(isinstance(child, nn.ModuleList) for child in part.children())
        streams = device.type == "cuda"
        apply_group_offloading(
            part,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level" if blocks else "leaf_level",
            num_blocks_per_group=1 if blocks else None,
            use_stream=streams,
            low_cpu_mem_usage=streams,  # pins what is on its way, not all weights at once
        )


def _take_turns(parts: list[nn.Module], device: torch.device) -> None:
    """Each part drives the one before it out; the first one the last, for the next picture."""
    from accelerate import cpu_offload_with_hook

    hooks = []
    for part in parts:
        _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hooks[-1] if hooks else None)
        hooks.append(hook)
    if len(hooks) > 1:
        hooks[0].hook.prev_module_hook = hooks[-1]
