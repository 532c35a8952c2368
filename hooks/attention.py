"""Reading attention at named modules, wherever they call `scaled_dot_product_attention`.

While any `AttentionHook` is open, `torch.nn.functional.scaled_dot_product_attention` is replaced, once for the process and
reference-counted. Hooks on the watched modules say, for each thread, which of them is running; a call from anywhere
else goes through untouched. The watched module needs to know nothing: neither our models nor anybody else's do.
"""

import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from toushi.hooks.hook_error import HookError
from toushi.hooks.kernels import (
    RECOMPUTE_MAX_KEYS,
    AttentionInputs,
    AttentionOutput,
    Columns,
    attend,
    autocasted,
    probabilities,
)
from toushi.hooks.torch_private import tensor_version


class Call:
    """One attention call at one site, just after it ran. Nothing is computed until it is asked for."""

    __slots__ = ("inputs", "kernel", "lse", "output", "site", "versions")

    def __init__(self, site: str, inputs: AttentionInputs, attended: AttentionOutput):
        self.site, self.inputs = site, inputs
        self.output, lse, self.kernel = attended
        self.lse = None if lse is None else lse.detach()  # what is read is data: no gradient goes through it
        self.versions = self._versions()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows of the batch, heads, queries, keys."""
        return (*self.inputs.query.shape[:3], self.inputs.key.shape[2])

    @property
    def bytes(self) -> int:
        """Bytes of the queries kept alive after the call. Keys, mask and output are not counted."""
        return self.inputs.query.numel() * self.inputs.query.element_size()

    @property
    def stale(self) -> bool:
        """Whether queries or keys were changed in place since; then nothing true can be read any more."""
        return self._versions() != self.versions

    def _versions(self) -> tuple[int, ...]:
        return tuple(
            0 if x is None else tensor_version(x) for x in (self.inputs.query, self.inputs.key, self.inputs.mask)
        )

    def probabilities(
        self,
        columns: Columns = slice(None),
        rows: slice | list[int] | None = None,
        queries: slice | None = None,
        mean: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Where the queries looked: probabilities [row, head, column, query], at least fp32 unless `dtype` is given.

        With `mean` over the heads, [row, column, query]. Before dropout, if there is any. Queries that may look
        nowhere have zeros.
        """
        device = self.inputs.query.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.probabilities(columns, rows, queries, mean, dtype)
        some = slice(None) if rows is None else rows, slice(None) if queries is None else queries
        lse = None if self.lse is None else self.lse[some[0]][:, :, some[1]]
        return probabilities(self.inputs.part(*some), lse, columns, mean, dtype)


BATCHED_MAX_SCORES = 1 << 16


def probabilities_of(
    calls: Sequence[Call], columns: Columns, rows: list[int] | None, mean: bool, dtype: torch.dtype
) -> list[Tensor]:
    """`call.probabilities(columns, rows, None, mean, dtype)` of each call.

    Small calls of equal shape are read together: there it is their number that costs, not their size.
    """
    alike: dict[tuple, list[Call]] = {}
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
        alike.setdefault(key if small else (id(call),), []).append(call)
    found: dict[int, Tensor] = {}
    for some in alike.values():
        if len(some) == 1:
            found[id(some[0])] = some[0].probabilities(columns, rows, None, mean, dtype)
            continue
        count = some[0].shape[0]
        own = None if rows is None else [number * count + row for number in range(len(some)) for row in rows]
        parts = _joined(some).probabilities(columns, own, None, mean, dtype).chunk(len(some))
        found |= zip(map(id, some), parts)
    return [found[id(call)] for call in calls]


def _joined(calls: Sequence[Call]) -> Call:
    """One call with the rows of all of them, which have the same mask."""
    first, mask = calls[0], calls[0].inputs.mask
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = torch.cat([mask] * len(calls))
    query, key = (torch.cat([getattr(call.inputs, name) for call in calls]) for name in ("query", "key"))
    lse = None if first.lse is None else torch.cat([call.lse for call in calls])
    return Call(
        first.site,
        first.inputs._replace(query=query, key=key, mask=mask),
        AttentionOutput(first.output, lse, first.kernel),
    )


class AttentionHook:
    """`with AttentionHook({name: module}, on_call):` calls `on_call(Call)` after each attention call inside those modules.

    The innermost watched module gives the call its name; several watches may share modules. What `on_call` raises
    stops the model. `edit(call, value, output)` returns the output that replaces the call's. `ran` and `seen` count
    the runs of each module and the attention calls in it.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        on_call: Callable[[Call], object] | None = None,
        edit: Callable[[Call, Tensor, Tensor], Tensor] | None = None,
    ):
        self.modules, self.on_call, self.edit = dict(modules), on_call, edit
        self.handles: list[RemovableHandle] = []
        self.reset_counts()

    def reset_counts(self) -> None:
        """Counts from zero again."""
        self.ran = dict.fromkeys(self.modules, 0)
        self.seen = dict.fromkeys(self.modules, 0)

    def __enter__(self) -> "AttentionHook":
        for name, module in self.modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise HookError(
                    f"{name} is a scripted module, whose attention runs below Python: load the plain module"
                )
        _replace()
        for name, module in self.modules.items():
            enter, leave = self._wires(name)
            self.handles.append(module.register_forward_pre_hook(enter))
            self.handles.append(module.register_forward_hook(leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        _stack()[:] = [entry for entry in _stack() if entry[0] is not self]
        _restore()

    def unread(self) -> dict[str, str]:
        """The modules whose attention has not been read, each with the reason."""
        reasons = {}
        for name in self.modules:
            if not self.ran[name]:
                reasons[name] = "did not run"
            elif not self.seen[name]:
                reasons[name] = (
                    "ran, but did not call torch.nn.functional.scaled_dot_product_attention: choose the native "
                    "attention backend (no xformers, flash-attn, sage, flex or sliced attention) for it"
                )
        return reasons

    def _wires(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        entry = (self, name)

        def leave(*_):
            stack = _stack()
            if entry in stack:
                del stack[stack.index(entry) :]

        def enter(*_):
            leave()  # left there by a KeyboardInterrupt, which skips forward hooks
            _stack().append(entry)
            self.ran[name] += 1

        return enter, leave


# --- the one replacement ---

_thread = threading.local()  # .stack: the watched modules that are running, (watch, name), outermost first
_lock = threading.Lock()
_open = 0
_replacement: Callable | None = None
_original: Callable | None = None
_stance = None


def _stack() -> list[tuple[AttentionHook, str]]:
    try:
        return _thread.stack
    except AttributeError:
        _thread.stack = []
        return _thread.stack


def _replacing(original: Callable) -> Callable:
    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        stack = _stack()
        # Somebody may have kept this function beyond its time: then it is only the original.
        if not stack or _replacement is not attention:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if query.is_nested or query.dim() != 4:
            came = "a nested tensor" if query.is_nested else str(tuple(query.shape))
            raise HookError(f"{stack[-1][1]}: expected q of shape [rows, heads, queries, width], but {came} came")
        query, key, value, attn_mask = autocasted(query, key, value, attn_mask)
        attended = attend(
            original, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, RECOMPUTE_MAX_KEYS
        )
        scaled = query.shape[-1] ** -0.5 if scale is None else scale
        inputs = AttentionInputs(query.detach(), key.detach(), scaled, attn_mask, 0 if is_causal else None)
        told: list[AttentionHook] = []
        output = attended.output
        for watch, name in reversed(stack):
            if watch.handles and watch not in told:  # another thread may have closed it meanwhile
                told.append(watch)
                watch.seen[name] += 1
                call = Call(name, inputs, attended)
                if watch.on_call is not None:
                    watch.on_call(call)
                if watch.edit is not None:
                    output = watch.edit(call, value, output)
        return output

    attention.__doc__ = original.__doc__
    return attention


def _replace() -> None:
    global _open, _replacement, _original, _stance
    with _lock:
        if _open == 0:
            _original = F.scaled_dot_product_attention
            _replacement = F.scaled_dot_product_attention = _replacing(_original)
            # A compiled region neither runs hooks added later nor looks the function up again. Importing dynamo
            # takes a second, and without it nothing can be compiled.
            if "torch._dynamo" in sys.modules:
                _stance = torch.compiler.set_stance("force_eager")
        _open += 1


def _restore() -> None:
    global _open, _replacement, _stance
    with _lock:
        _open -= 1
        if _open == 0:
            # Whoever replaced it after us keeps his; ours behind it passes calls through.
            if F.scaled_dot_product_attention is _replacement:
                F.scaled_dot_product_attention = _original
            _replacement = None
            if _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None
