"""What a model computes, read by hooks of this package alone, to compare with what was recorded.

It shares no line with `toushi.hooks` and `toushi.probe.session`, so that a fault there cannot hide itself.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from toushi.probe.pipelines.family import DenoiserInputs, Family, Model, submodule

Draw = Callable[[], object]


class AttentionCall(NamedTuple):
    """One call of scaled_dot_product_attention inside a module: q [row, head, query, d], k [row, head, key, d]."""

    site: str
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    causal: bool


def explicit_softmax(call: AttentionCall, row: int, queries: Sequence[int]) -> Float64[Tensor, "head query key"]:
    """softmax(q k^T * scale + mask) of some queries of one row, in fp64."""
    device = "cpu" if call.query.device.type == "mps" else call.query.device  # MPS has no fp64
    query = call.query[row, :, list(queries)].detach().to(device).double()
    key = call.key[row % len(call.key)].detach().to(device).double()
    key = key.repeat_interleave(len(query) // len(key), 0)
    scores = torch.einsum("hqd,hkd->hqk", query, key) * call.scale
    if call.mask is not None:
        full = (*call.query.shape[:3], call.key.shape[2])
        mask = call.mask.expand(full)[row][:, list(queries)].to(device)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    if call.causal:
        after = torch.arange(key.shape[1], device=device) > torch.tensor(list(queries), device=device)[:, None]
        scores = scores.masked_fill(after, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).cpu()


@contextmanager
def attention_calls(modules: Mapping[str, nn.Module], on_call: Callable[[AttentionCall], object]) -> Iterator[None]:
    """Inside the `with`, `on_call` gets each attention call inside one of these modules, before it is computed."""
    running: list[str] = []
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if running:
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            on_call(AttentionCall(running[-1], query, key, attn_mask, factor, is_causal))
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    with ExitStack() as stack:
        stack.callback(setattr, F, "scaled_dot_product_attention", original)
        F.scaled_dot_product_attention = attention
        for name, module in modules.items():
            before = module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            after = module.register_forward_hook(lambda *_: running.pop() and None, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


@contextmanager
def argument_calls(
    module: nn.Module, on_arguments: Callable[[dict[str, Any]], Mapping[str, object] | None]
) -> Iterator[None]:
    """Inside the `with`, `on_arguments` gets the arguments of each call of the module. What it returns replaces them."""
    signature = inspect.signature(module.forward)

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        bound = signature.bind(*args, **kwargs)
        changed = on_arguments(dict(bound.arguments))
        if changed is None:
            return None
        bound.arguments.update(changed)
        return bound.args, bound.kwargs

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def step_calls(model: Model, family: Family, on_step: Callable[[], object]) -> Iterator[None]:
    """Inside the `with`, `on_step` is called after each step of the scheduler."""
    scheduler = getattr(model, family.scheduler)
    step = scheduler.step

    def counted_step(*args: object, **kwargs: object) -> object:
        result = step(*args, **kwargs)
        on_step()
        return result

    counted_step.__signature__ = inspect.signature(step)  # pipelines ask it for parameters
    scheduler.step = counted_step
    try:
        yield
    finally:
        del scheduler.step


class _Stop(BaseException):
    """Ends a drawing of which enough was seen."""


def stop() -> None:
    raise _Stop


def draw_until_stop(model: Model, draw: Draw) -> None:
    """Draws until `stop()` is called in one of the functions above."""
    try:
        draw()
    except _Stop:
        release = getattr(model, "maybe_free_model_hooks", None)  # moves offloaded parts back, as at a picture's end
        if release is not None:
            release()


class IdRow(NamedTuple):
    """One row that a text encoder got."""

    ids: list[int]
    padding: int  # positions on the left that its mask excludes
    real: int  # positions that its mask does not exclude


@dataclass
class FirstStep:
    """What the text encoders and the denoiser got until the end of the first step."""

    ids: dict[str, list[IdRow]] = field(default_factory=dict)  # by encoder
    texts: list[list[Tensor]] = field(default_factory=list)  # of each evaluation: of each row [column, feature]


def left_padding(ids: list[int]) -> int:
    """How often the first id is repeated at the beginning: padding of encoders that get no mask. 0 if it stands alone."""
    count = next((index for index, id in enumerate(ids) if id != ids[0]), 0)
    return count if count > 1 else 0


def observe_first_step(model: Model, family: Family, draw: Draw) -> FirstStep:
    """Draws the first step."""
    found = FirstStep()

    def on_ids(encoder: str, parameter: str, arguments: dict[str, Any]) -> None:
        ids = arguments.get(parameter)
        if isinstance(ids, Tensor):
            mask = arguments.get("attention_mask")
            if not isinstance(mask, Tensor) or mask.shape != ids.shape:
                mask = torch.tensor([[0] * (n := left_padding(row)) + [1] * (len(row) - n) for row in ids.tolist()])
            real = mask.long()
            rows = map(IdRow, ids.tolist(), real.argmax(1).tolist(), real.sum(1).tolist())
            found.ids.setdefault(encoder, []).extend(rows)

    def on_evaluation(arguments: dict[str, Any]) -> None:
        found.texts.append([text.detach().clone() for text in read_inputs(model, family, arguments).texts()])

    with ExitStack() as hooks:
        for encoder in family.text_encoders or (family.text_encoder,):
            if getattr(model, encoder, None) is not None:
                parameter = family.input_ids if encoder == family.text_encoder else "input_ids"
                note = lambda arguments, e=encoder, p=parameter: on_ids(e, p, arguments)  # noqa: E731
                hooks.enter_context(argument_calls(submodule(model, encoder), note))
        hooks.enter_context(argument_calls(submodule(model, family.denoiser), on_evaluation))
        hooks.enter_context(step_calls(model, family, stop))
        draw_until_stop(model, draw)
    return found


def read_inputs(model: Model, family: Family, arguments: Mapping[str, Any]) -> DenoiserInputs:
    """The family's reading of the denoiser's arguments: where image and text are."""
    return family.read_inputs(model, {name: arguments.get(name) for name in family.denoiser_inputs})


def observe_first_site(
    model: Model,
    family: Family,
    draw: Draw,
    change: Callable[[dict[str, Any], DenoiserInputs], None] | None = None,
) -> tuple[AttentionCall, DenoiserInputs]:
    """The first image-to-text attention that is computed. `change` changes the denoiser's arguments in place, copies."""
    seen: list[DenoiserInputs] = []
    calls: list[AttentionCall] = []

    def on_evaluation(arguments: dict[str, Any]) -> dict[str, Any]:
        copies = {name: _copy(value) for name, value in arguments.items()}
        seen.append(read_inputs(model, family, copies))
        if change is not None:
            change(copies, seen[-1])
        return copies

    def on_call(call: AttentionCall) -> None:
        calls.append(call)
        stop()

    modules = {name: site.module for name, site in family.sites(model).items() if site.kind == "cross"}
    with attention_calls(modules, on_call), argument_calls(submodule(model, family.denoiser), on_evaluation):
        draw_until_stop(model, draw)
    return calls[0], seen[-1]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return [_copy(item) for item in value] if isinstance(value, list) else value
