"""Which attention can be read: that which runs in the processors a family is loaded with, on PyTorch's own kernels."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Site
from toushi.probe.pipelines.private_api import attention_backend, is_context_parallel


class UnreadableAttention(ToushiError):
    """An attention of the pipeline runs where it cannot be read; the message says how to choose another one."""


ELSEWHERE = re.compile("XFormers|Sliced|Sage|Linear|Flash|Flex|IPAdapter|NPU|XLA")


def readable(*processors: str) -> Callable[[Any, Mapping[str, Site]], None]:
    """A check that image-to-text attention runs in one of these processors, on PyTorch's own kernels.

    Without names: in any but those that are known to run elsewhere.
    """

    def check(pipeline, sites: Mapping[str, Site]) -> None:
        for name, site in sites.items():
            if site.kind == "encoder":
                continue
            processor = getattr(site.module, "processor", None)
            kind = type(processor).__name__
            if kind not in processors if processors else ELSEWHERE.search(kind):
                part = name.partition(".")[0]
                usual = " or ".join(processors) or "one that calls scaled_dot_product_attention"
                back = f"set_attn_processor({processors[0]}())" if processors else "set_default_attn_processor()"
                raise UnreadableAttention(
                    f"{name} attends with {kind}, which cannot be read: expected {usual}. "
                    f"Give it back what it is loaded with (disable_xformers_memory_efficient_attention, "
                    f"disable_attention_slicing, unload_ip_adapter, or pipeline.{part}.{back}), then record."
                )
            backend = attention_backend(processor)
            if not backend.removeprefix("_").startswith("native") or backend in ("_native_npu", "_native_xla"):
                raise UnreadableAttention(
                    f"{name} attends on the backend {backend!r}, which keeps its softmax to itself: call "
                    'pipeline.transformer.set_attention_backend("native") (and unset DIFFUSERS_ATTN_BACKEND) first.'
                )
            if is_context_parallel(processor):
                raise UnreadableAttention(f"{name} is split over several devices, which cannot be read: run it on one")

    return check
