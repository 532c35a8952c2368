"""Whether a pipeline's attention can be read: it must call PyTorch's own scaled_dot_product_attention."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Site
from toushi.probe.pipelines.private_api import attention_backend, is_context_parallel


class UnreadableAttention(ToushiError):
    """An attention of the pipeline runs where it cannot be read; the message says how to choose another one."""


OTHER_KERNELS = re.compile("XFormers|Sliced|Sage|Linear|Flash|Flex|IPAdapter|NPU|XLA")


def require_sdpa_processors(*processors: str) -> Callable[[Any, Mapping[str, Site]], None]:
    """A check for `Family.check`: image-to-text attention runs in one of these processors, on PyTorch's own kernels.

    Without names any processor will do, except those that are known to run other kernels. The check raises
    UnreadableAttention.
    """

    def check(pipeline, sites: Mapping[str, Site]) -> None:
        for name, site in sites.items():
            if site.kind == "encoder":
                continue
            processor = getattr(site.module, "processor", None)
            kind = type(processor).__name__
            if kind not in processors if processors else OTHER_KERNELS.search(kind):
                component = name.partition(".")[0]
                expected = " or ".join(processors) or "one that calls scaled_dot_product_attention"
                reset = f"set_attn_processor({processors[0]}())" if processors else "set_default_attn_processor()"
                raise UnreadableAttention(
                    f"{name} attends with {kind}, which cannot be read: expected {expected}. Restore the processor "
                    "that it is loaded with (disable_xformers_memory_efficient_attention, disable_attention_slicing, "
                    f"unload_ip_adapter, or pipeline.{component}.{reset}), then record."
                )
            backend = attention_backend(processor)
            if not backend.removeprefix("_").startswith("native") or backend in ("_native_npu", "_native_xla"):
                raise UnreadableAttention(
                    f"{name} attends on the backend {backend!r}, which does not give its probabilities: call "
                    'pipeline.transformer.set_attention_backend("native") (and unset DIFFUSERS_ATTN_BACKEND) first.'
                )
            if is_context_parallel(processor):
                raise UnreadableAttention(f"{name} is split over several devices, which cannot be read: run it on one")

    return check
