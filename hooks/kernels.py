"""Attention probabilities from q, k and the log-sum-exp of the kernel that ran.

softmax(q k^T)[:, columns] = exp(q k[columns]^T * scale - lse), so a few columns of an attention matrix are exact
at the cost of those columns alone, and the output is untouched because the very same kernel computed it. A fused
kernel computes lse (Dao et al. 2022, section 3.1) and PyTorch then drops it; `attend` asks for it. Where no
kernel gives one, it is computed over chunks of queries; where there are few keys, as in cross-attention to a text,
the whole softmax is computed again, which costs no more, and where scores are large is more exact than a difference
of two that were rounded in different ways. q k^T is never taken in half precision: that alone would cost 1e-2. On a
CPU what takes the time is memory, not arithmetic, so scores are made, normalised and averaged a cache's worth at a
time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from toushi.hooks import torch_private

CHUNK = 1 << 22  # scores held at once: 16 MB in fp32
CPU_BLOCK_SCORES = 1 << 18  # and on a CPU, where they had better stay in its cache
RECOMPUTE_MAX_KEYS = (
    512  # keys; up to here the model's own call is left alone and the softmax computed a second time when read
)


class AttentionOutput(NamedTuple):
    output: Tensor
    lse: Tensor | None  # [row, head, query], fp32 or wider; None where the kernel gives none
    kernel: str  # what computed the output


# --- kernels that give their log-sum-exp ---


def flash_cpu(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return torch_private.flash_attention_cpu(query, key, value, bias, causal, scale)


def flash(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """CUDA. Takes no mask, and heads in multiples of 8, which PyTorch pads outside of the kernel as we do here."""
    width = query.shape[-1]
    query, key, value = (F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value))
    scale = width**-0.5 if scale is None else scale
    output, lse = torch_private.flash_attention(query, key, value, causal, scale)
    return output[..., :width], lse[..., : query.shape[2]]


def efficient(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """CUDA. The mask's rows must be aligned, and lse comes padded to a multiple of 32 queries."""
    if bias is not None:
        keys = key.shape[2]
        full = (query.shape[0], query.shape[1], query.shape[2], keys)
        bias = F.pad(bias.expand(*bias.shape[:-1], keys), (0, -keys % 8))[..., :keys].expand(full)
    output, lse = torch_private.efficient_attention(query, key, value, bias, causal, scale)
    lse = lse[..., : query.shape[2]]
    return output, lse if bias is None else lse.masked_fill(lse == -torch.inf, 0.0)


def cudnn(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    output, lse = torch_private.cudnn_attention(query, key, value, bias, causal, scale)
    return output, lse[..., 0]


KERNELS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "flash-cpu": flash_cpu,
    "flash": flash,
    "efficient": efficient,
    "cudnn": cudnn,
}


NAMES = {
    SDPBackend.MATH.value: "math",
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
}


def chosen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    """The kernel that PyTorch would choose for this call now."""
    choice = torch_private.fused_attention_choice(query, key, value, mask, dropout, causal, scale, enable_gqa)
    name = NAMES.get(choice, "other")
    return "flash-cpu" if name == "flash" and query.device.type == "cpu" else name


def attend(
    original: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    few: int = 0,
) -> AttentionOutput:
    """What `original(query, key, value, ...)` returns, bit for bit, with the log-sum-exp where it can be had.

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention`. Calls that no kernel with a
    log-sum-exp would serve (no keys, unequal widths, dropout, tensor subclasses) go to `original`, as does
    everything when `original` is somebody else's replacement, and calls with at most `few` keys.
    """
    kernel = "replaced"
    if original is torch_private.builtin_attention:
        kernel = chosen(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        plain = type(query) is Tensor and type(key) is Tensor and type(value) is Tensor and dropout_p == 0.0
        plain = plain and not (query.dtype == torch.float32 and rounded(query))  # so would its log-sum-exp be
        # CUDA's flash kernel takes no mask, and for cuDNN PyTorch turns masks into numbers in a way of its own.
        takes_mask = attn_mask is None or kernel in ("flash-cpu", "efficient")
        if plain and takes_mask and kernel in KERNELS and key.shape[-2] > few:
            bias = additive(attn_mask, query.dtype)
            output, lse = KERNELS[kernel](query, key, value, bias, is_causal, scale)
            return AttentionOutput(output, lse, kernel)
    output = original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return AttentionOutput(output, None, kernel)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask (True = look) as numbers to add to the scores; other masks as they are."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, -torch.inf).to(dtype)


def autocasted(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The tensors in the dtype that autocast gives to attention; as they are when autocast is off.

    The kernels above lie below autocast, so it has to be done here for the output to stay the same.
    """
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x

    return cast(query), cast(key), cast(value), None if mask is None else cast(mask)


# --- probabilities ---

Columns = slice | Sequence[int] | Tensor


class AttentionInputs(NamedTuple):
    """What decides an attention."""

    query: Tensor  # [row, head, query, d]
    key: Tensor  # [row | 1, head, key, d]; with grouped queries fewer heads
    scale: float
    mask: Tensor | None = None  # True = look, or numbers added to the scores; broadcasts to [row, head, query, key]
    first: int | None = None  # causal: query i sees keys 0..first + i

    def part(self, rows: slice | list[int], queries: slice) -> "AttentionInputs":
        """Some rows of the batch, and some queries of each."""
        key = self.key if self.key.shape[0] == 1 else self.key[rows]
        mask, first = self.mask, self.first
        if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
            mask = mask[rows]
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        if first is not None:
            first += queries.start or 0
        return AttentionInputs(self.query[rows][:, :, queries], key, self.scale, mask, first)


def rounded(query: Tensor) -> bool:
    """Whether fp32 matrix products may be rounded to TF32 or bf16 here."""
    backend = torch.backends.cuda.matmul if query.is_cuda else torch.backends.mkldnn.matmul
    return backend.fp32_precision not in ("none", "ieee")  # torch.set_float32_matmul_precision shows there too


def working_dtype(query: Tensor) -> torch.dtype:
    """fp32; fp64 where fp32 products are rounded, or q is fp64 already."""
    wide = query.dtype == torch.float64 or (query.device.type != "mps" and rounded(query))
    return torch.float64 if wide else torch.float32


def scores(inputs: AttentionInputs, columns: Columns, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
    """q k^T * scale + mask at some columns: [row, head, column, query]. It may lie in `into`, if given."""
    query = inputs.query.to(dtype)
    key = inputs.key[:, :, columns].to(dtype) * inputs.scale
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    rows, heads, length, _ = query.shape
    shape = (rows, heads, key.shape[2], length)
    result = query.new_empty(shape) if into is None else into[: math.prod(shape)].view(shape)
    # Row by row, because the heads of one row can be multiplied without a copy; those of all rows together cannot.
    keys = key.unbind() if key.shape[0] == rows else key.unbind() * rows
    for one_key, one_query, one in zip(keys, query.transpose(2, 3).unbind(), result.unbind()):
        torch.bmm(one_key, one_query, out=one)
    if inputs.mask is not None:
        mask = (
            inputs.mask
            if inputs.mask.shape[-1] > 1
            else inputs.mask.expand(*inputs.mask.shape[:-1], inputs.key.shape[2])
        )
        mask = mask if mask.dim() > 1 else mask[None]
        mask = mask[..., columns].transpose(-1, -2)
        result = result.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else result.add_(mask)
    if inputs.first is not None:
        key_at = torch.arange(inputs.key.shape[2], device=result.device)[columns]
        query_at = inputs.first + torch.arange(length, device=result.device)
        result.masked_fill_(key_at[:, None] > query_at, -torch.inf)
    return result


def blocks(inputs: AttentionInputs, columns: int) -> Iterator[tuple[slice, slice]]:
    """Rows and queries of which so many columns are worked on at once."""
    rows, heads, queries, _ = inputs.query.shape
    most = min(CHUNK, CPU_BLOCK_SCORES) if inputs.query.device.type == "cpu" else CHUNK
    if rows * heads * columns * queries <= most:
        yield slice(0, rows), slice(0, queries)
        return
    size = max(1, most // max(1, heads * columns))
    for row in range(rows):
        for at in range(0, queries, size):
            yield slice(row, row + 1), slice(at, min(at + size, queries))


def log_sum_exp(inputs: AttentionInputs) -> Tensor:
    """log sum over keys of exp(score): [row, head, query]; 0 for a query that may look nowhere, as in the kernels."""
    dtype = working_dtype(inputs.query)
    lse = inputs.query.new_empty(inputs.query.shape[:3], dtype=dtype)
    for rows, queries in blocks(inputs, inputs.key.shape[2]):
        lse[rows, :, queries] = scores(inputs.part(rows, queries), slice(None), dtype).logsumexp(dim=2)
    return lse.masked_fill_(lse == -torch.inf, 0.0)


def softmax_(scores: Tensor) -> Tensor:
    """Over the keys, in place; zeros for a query that may look nowhere. [row, head, key, query]"""
    if not scores.shape[2]:
        return scores
    # In place and in these steps it takes half the time of torch.softmax, whose last dimension would be another one.
    top = scores.amax(dim=2, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    scores.sub_(top).exp_()
    return scores.mul_(scores.sum(dim=2, keepdim=True).clamp_(min=1).reciprocal_())


def probabilities(
    inputs: AttentionInputs, lse: Tensor | None, columns: Columns, mean: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Attention probabilities at some columns: [row, head, column, query]. `lse` is [row, head, query], if known.

    With `mean` averaged over the heads, [row, column, query]; rounded to `dtype`, if given, at the very end.
    """
    (rows, heads, queries, _), keys = inputs.query.shape, inputs.key.shape[2]
    again = lse is None and keys <= RECOMPUTE_MAX_KEYS
    known = lse if lse is not None or again else log_sum_exp(inputs)
    count = len(range(*columns.indices(keys))) if isinstance(columns, slice) else len(columns)
    shape = (rows, count, queries) if mean else (rows, heads, count, queries)
    working = working_dtype(inputs.query)
    result = inputs.query.new_empty(shape, dtype=dtype or working)
    room = None  # memory that is new costs as much as what is done in it
    for some, part in blocks(inputs, keys if again else count):
        found = scores(inputs.part(some, part), slice(None) if again else columns, working, room)
        room = found.view(-1) if room is None else room
        if known is None:
            found = softmax_(found)[:, :, columns]
        else:
            found.sub_(known[some, :, None, part]).exp_()
        result[some, ..., part] = found.mean(1) if mean else found
    return result
