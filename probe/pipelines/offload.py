"""Offload: weights wait in main memory and are moved to the device when they are needed, in three modes.

accelerate and diffusers move them, around the modules' `forward`. What a module computes stays the same.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn


def offload(
    parts: Mapping[str, nn.Module],
    denoiser: str,
    device: torch.device,
    mode: str,
    order: Iterable[str] = (),
    whole: Iterable[str] = (),
) -> None:
    """Offloads the components `parts` of a model to main memory. `mode` is what is moved to `device` at once:

    "model"       one component after the other, in this `order`
    "group"       blocks of the denoiser, and layers of the other components
    "sequential"  layers

    Components in `whole` stay on `device`.
    """
    for name in whole:
        if name in parts:
            parts[name].to(device)
    parts = {name: part for name, part in parts.items() if name not in set(whole)}
    if mode == "model":
        _take_turns([parts[name] for name in order if name in parts], device)
        return
    for name, part in parts.items():
        if mode == "sequential":
            from accelerate import cpu_offload

            cpu_offload(part, device, offload_buffers=any(True for _ in part.parameters(recurse=False)))
            continue
        from diffusers.hooks.group_offloading import apply_group_offloading

        blocks = name == denoiser and any(isinstance(child, nn.ModuleList) for child in part.children())
        use_stream = device.type == "cuda"
        apply_group_offloading(
            part,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level" if blocks else "leaf_level",
            num_blocks_per_group=1 if blocks else None,
            use_stream=use_stream,
            low_cpu_mem_usage=use_stream,  # pins only the weights that are on their way
        )


def _take_turns(parts: list[nn.Module], device: torch.device) -> None:
    """Each component moves the one before it off the device; the first one moves the last, for the next picture."""
    from accelerate import cpu_offload_with_hook

    hooks = []
    for part in parts:
        _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hooks[-1] if hooks else None)
        hooks.append(hook)
    if len(hooks) > 1:
        hooks[0].hook.prev_module_hook = hooks[-1]
