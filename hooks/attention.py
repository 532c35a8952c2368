"""Reading attention at named modules, wherever they call `scaled_dot_product_attention`.

While any `AttentionHook` is open, `torch.nn.functional.scaled_dot_product_attention` is replaced, once for the process
and reference-counted. Hooks on the modules record, for each thread, which of them is running. A call from anywhere else
passes unchanged. The modules need no change, whether they are ours or of another library.
"""

import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from toushi.hooks.hook_error import HookError
from toushi.hooks.kernels import (
    RECOMPUTE_MAX_KEYS,
    AttentionInputs,
    AttentionOutput,
    Columns,
    Output,
    Rows,
    Value,
    attend,
    autocast_inputs,
    index_of,
    probabilities,
)
from toushi.hooks.torch_private import tensor_version

Probabilities = (
    Float[Tensor, "row head column query"] | Float[Tensor, "row column query"]
)  # the latter: mean over heads


class Call:
    """One attention call at one site, just after it ran. Nothing is computed before it is asked for."""

    __slots__ = ("inputs", "kernel", "lse", "output", "site", "versions")

    def __init__(self, site: str, inputs: AttentionInputs, attended: AttentionOutput):
        self.site, self.inputs = site, inputs
        self.output, lse, self.kernel = attended
        self.lse = None if lse is None else lse.detach()  # what is read is data: no gradient goes through it
        self.versions = self._versions()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows of the batch, heads, queries, keys."""
        rows, heads, queries, _ = self.inputs.query.shape
        return rows, heads, queries, self.inputs.key.shape[2]

    @property
    def bytes(self) -> int:
        """Bytes of the queries kept alive after the call. Keys, mask and output are not counted."""
        return self.inputs.query.numel() * self.inputs.query.element_size()

    @property
    def stale(self) -> bool:
        """Whether queries, keys or mask were changed in place since the call, so that the probabilities are lost."""
        return self._versions() != self.versions

    def _versions(self) -> tuple[int, ...]:
        return tuple(
            0 if x is None else tensor_version(x) for x in (self.inputs.query, self.inputs.key, self.inputs.mask)
        )

    def probabilities(
        self,
        columns: Columns = slice(None),
        rows: Rows | None = None,
        queries: slice | None = None,
        mean: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Probabilities:
        """Attention probabilities [row, head, column, query], at least fp32 unless `dtype` is given.

        With `mean` over the heads, [row, column, query]. Before dropout, if there is any. Queries that may look
        nowhere have zeros.
        """
        device = self.inputs.query.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.probabilities(columns, rows, queries, mean, dtype)
        rows, queries = slice(None) if rows is None else rows, slice(None) if queries is None else queries
        lse = None if self.lse is None else self.lse[index_of(rows, self.lse.device)][:, :, queries]
        return probabilities(self.inputs.select(rows, queries), lse, columns, mean, dtype)


BATCHED_MAX_SCORES = 1 << 16


def probabilities_of(
    calls: Sequence[Call], columns: Columns, rows: list[int] | None, mean: bool, dtype: torch.dtype
) -> list[Probabilities]:
    """`call.probabilities(columns, rows, None, mean, dtype)` of each call.

    Small calls of equal shape are computed together, because each computation has a fixed cost.
    """
    batches: dict[tuple, list[Call]] = {}
    for call in calls:
        shape, inputs = call.shape, call.inputs
        small = math.prod(shape) <= BATCHED_MAX_SCORES and inputs.key.shape[:2] == inputs.query.shape[:2]
        key = (
            shape,
            inputs.query.shape[3],
            inputs.query.dtype,
            inputs.scale,
            inputs.first,
            id(inputs.mask),
            call.lse is None,
        )
        batches.setdefault(key if small else (id(call),), []).append(call)
    results: dict[int, Tensor] = {}
    for batch in batches.values():
        if len(batch) == 1:
            results[id(batch[0])] = batch[0].probabilities(columns, rows, None, mean, dtype)
            continue
        count = batch[0].shape[0]
        batch_rows = None if rows is None else [index * count + row for index in range(len(batch)) for row in rows]
        parts = _concatenate(batch).probabilities(columns, batch_rows, None, mean, dtype).chunk(len(batch))
        results |= zip(map(id, batch), parts)
    return [results[id(call)] for call in calls]


def _concatenate(calls: Sequence[Call]) -> Call:
    """One call with the rows of all calls, which share one mask."""
    first, mask = calls[0], calls[0].inputs.mask
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = torch.cat([mask] * len(calls))
    query, key = (torch.cat([getattr(call.inputs, name) for call in calls]) for name in ("query", "key"))
    lse = [call.lse for call in calls if call.lse is not None]
    output = AttentionOutput(first.output, torch.cat(lse) if lse else None, first.kernel)
    return Call(first.site, first.inputs._replace(query=query, key=key, mask=mask), output)


class AttentionHook:
    """`with AttentionHook({name: module}, on_call):` calls `on_call(Call)` after each attention call in these modules.

    The innermost of the modules gives the call its name. Several hooks may share modules. An exception in `on_call` stops
    the model. `edit(call, value, output)` returns the output that replaces the call's. `run_counts` and `call_counts`
    have the number of runs of each module and of the attention calls in it.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        on_call: Callable[[Call], object] | None = None,
        edit: Callable[[Call, Value, Output], Output] | None = None,
    ):
        self.modules, self.on_call, self.edit = dict(modules), on_call, edit
        self.handles: list[RemovableHandle] = []
        self.reset_counts()

    def reset_counts(self) -> None:
        """Counts from zero again."""
        self.run_counts = dict.fromkeys(self.modules, 0)
        self.call_counts = dict.fromkeys(self.modules, 0)

    def __enter__(self) -> "AttentionHook":
        for name, module in self.modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise HookError(f"{name} is a scripted module; its attention runs below Python. Load the plain module.")
        _install_replacement()
        for name, module in self.modules.items():
            enter, leave = self._forward_hooks(name)
            self.handles.append(module.register_forward_pre_hook(enter))
            self.handles.append(module.register_forward_hook(leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        _stack()[:] = [entry for entry in _stack() if entry[0] is not self]
        _remove_replacement()

    def unread_modules(self) -> dict[str, str]:
        """The modules whose attention has not been read, each with the reason."""
        reasons = {}
        for name in self.modules:
            if not self.run_counts[name]:
                reasons[name] = "did not run"
            elif not self.call_counts[name]:
                reasons[name] = (
                    "ran, but did not call torch.nn.functional.scaled_dot_product_attention: choose the native "
                    "attention backend (no xformers, flash-attn, sage, flex or sliced attention) for it"
                )
        return reasons

    def _forward_hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """What runs before and after the module: it stands on the stack meanwhile."""
        entry = (self, name)

        def leave(*_: object) -> None:
            stack = _stack()
            if entry in stack:
                del stack[stack.index(entry) :]

        def enter(*_: object) -> None:
            leave()  # left there by a KeyboardInterrupt, which skips forward hooks
            _stack().append(entry)
            self.run_counts[name] += 1

        return enter, leave


# --- the one replacement ---

_thread = threading.local()  # .stack: the hooked modules that are running, (hook, name), outermost first
_lock = threading.Lock()
_open_hooks = 0
_replacement: Callable[..., Tensor] | None = None
_original: Callable[..., Tensor] | None = None
_stance = None


def _stack() -> list[tuple[AttentionHook, str]]:
    try:
        return _thread.stack
    except AttributeError:
        _thread.stack = []
        return _thread.stack


def _replacement_of(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
        stack = _stack()
        # A library may have kept this function after the last hook closed: then it only calls the original.
        if not stack or _replacement is not attention:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if query.is_nested or query.dim() != 4:
            came = "a nested tensor" if query.is_nested else str(tuple(query.shape))
            raise HookError(f"{stack[-1][1]}: expected q of shape [rows, heads, queries, width], but {came} came")
        query, key, value, attn_mask = autocast_inputs(query, key, value, attn_mask)
        attended = attend(
            original, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, RECOMPUTE_MAX_KEYS
        )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        inputs = AttentionInputs(query.detach(), key.detach(), factor, attn_mask, 0 if is_causal else None)
        informed: list[AttentionHook] = []
        output = attended.output
        for hook, name in reversed(stack):
            if hook.handles and hook not in informed:  # another thread may have closed it meanwhile
                informed.append(hook)
                hook.call_counts[name] += 1
                call = Call(name, inputs, attended)
                if hook.on_call is not None:
                    hook.on_call(call)
                if hook.edit is not None:
                    output = hook.edit(call, value, output)
        return output

    attention.__doc__ = original.__doc__
    return attention


def _install_replacement() -> None:
    global _open_hooks, _replacement, _original, _stance
    with _lock:
        if _open_hooks == 0:
            _original = F.scaled_dot_product_attention
            _replacement = F.scaled_dot_product_attention = _replacement_of(_original)
            # Compiled code neither runs hooks added later nor looks the function up again. Importing dynamo takes a
            # second, and without it nothing can be compiled.
            if "torch._dynamo" in sys.modules:
                _stance = torch.compiler.set_stance("force_eager")
        _open_hooks += 1


def _remove_replacement() -> None:
    global _open_hooks, _replacement, _stance
    with _lock:
        _open_hooks -= 1
        if _open_hooks == 0:
            # A replacement that a library put over ours stays; ours, behind it, then passes calls through.
            if F.scaled_dot_product_attention is _replacement:
                F.scaled_dot_product_attention = _original
            _replacement = None
            if _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None
