"""Whether a pipeline's attention can be read: it must call PyTorch's own scaled_dot_product_attention."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Site
from toushi.probe.pipelines.private_api import (
    attention_backend,
    is_context_parallel,
    native_backend,
    set_native_processor,
)


class UnreadableAttention(ToushiError):
    """An attention of the pipeline is computed where it cannot be read. The message says how to choose another one."""


class AttentionSwitched(UserWarning):
    """Attention is computed by PyTorch's own kernels while it is recorded, because the chosen ones cannot be read."""


# What computes the same, and what computes it by scaled_dot_product_attention.
NATIVE = {
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "AttnProcessor": "AttnProcessor2_0",
    "XFormersJointAttnProcessor": "JointAttnProcessor2_0",
}
OTHER_KERNELS = re.compile("XFormers|Sliced|Sage|Linear|Flash|Flex|IPAdapter|NPU|XLA")


def require_sdpa_processors(*processors: str) -> Callable[[object, Mapping[str, Site]], None]:
    """A check for `Family.check`: image-to-text attention has one of these processors, on PyTorch's own kernels.

    Without names any processor will do, except those that are known to use other kernels. The check raises
    UnreadableAttention.
    """

    def check(pipeline: object, sites: Mapping[str, Site]) -> None:
        for name, site in sites.items():
            if site.kind == "encoder":
                continue
            processor = getattr(site.module, "processor", None)
            kind = type(processor).__name__
            if kind not in processors if processors else kind in NATIVE or OTHER_KERNELS.search(kind):
                component = name.partition(".")[0]
                expected = " or ".join(processors) or "one that calls scaled_dot_product_attention"
                native = processors[0] if processors else NATIVE.get(kind)
                reset = f"set_attn_processor({native}())" if native else "set_default_attn_processor()"
                raise UnreadableAttention(
                    f"{name} has the attention processor {kind}, which cannot be read: expected {expected}. Restore the "
                    "processor that the pipeline is loaded with (disable_xformers_memory_efficient_attention, "
                    f"disable_attention_slicing, unload_ip_adapter, or pipeline.{component}.{reset}), then record."
                    + (" Or use record(…, native_attention=True)." if kind in NATIVE else "")
                )
            backend = attention_backend(processor)
            if not backend.removeprefix("_").startswith("native") or backend in ("_native_npu", "_native_xla"):
                raise UnreadableAttention(
                    f"{name} has the attention backend {backend!r}, which does not give its probabilities: call "
                    'pipeline.transformer.set_attention_backend("native") (and unset DIFFUSERS_ATTN_BACKEND) first, or use '
                    "record(…, native_attention=True)"
                )
            if is_context_parallel(processor):
                raise UnreadableAttention(
                    f"the attention of {name} is split over several devices and cannot be read: use one device"
                )

    return check


@contextmanager
def native_attention(sites: Mapping[str, Site]) -> Iterator[dict[str, str]]:
    """Inside the `with` these sites compute by PyTorch's own kernels; afterwards they are as before.

    Gives the sites that were switched, each with the processor or backend that it had. xformers, sage, flash and their
    like, and sliced attention, compute the same up to rounding. What computes something else, such as an IP-Adapter, is
    left alone.
    """
    switched: dict[str, str] = {}
    with ExitStack() as restored:
        for name, site in sites.items():
            processor = getattr(site.module, "processor", None)
            kind = type(processor).__name__
            if site.kind == "encoder" or processor is None:
                continue
            if kind in NATIVE:
                restored.callback(setattr, site.module, "processor", processor)
                set_native_processor(site.module, NATIVE[kind])
                switched[name] = kind
            elif not (backend := attention_backend(processor)).startswith("native"):
                restored.enter_context(native_backend(processor))
                switched[name] = backend
        if switched:
            before = ", ".join(sorted(set(switched.values())))
            message = (
                f"{len(switched)} attention modules compute by PyTorch's own attention in place of {before} while this is "
                "recorded; the picture may differ by rounding from one without recording"
            )
            warnings.warn(AttentionSwitched(message), stacklevel=4)
        yield switched
