"""Attention probabilities from q, k and the log-sum-exp of the kernel that ran.

softmax(q k^T)[:, columns] = exp(q k[columns]^T * scale - lse). So a few columns of an attention matrix are exact at
the cost of those columns alone. The output is untouched, because the very same kernel computed it. A fused kernel
computes lse (Dao et al. 2022, section 3.1), and PyTorch then drops it; `attend` asks for it.

Where no kernel gives lse, it is computed over chunks of queries. Where there are few keys, as in cross-attention to a
text, the whole softmax is computed a second time. That costs no more, and for large scores it is more exact: there is
no difference of two numbers that were rounded in different ways. q k^T is never taken in half precision, which alone
would cost 1e-2. On a CPU memory takes the time, not arithmetic. So scores are computed, normalised and averaged in
blocks that fit into the cache.

Axes: `row` of the batch, `head`, `query`, `key`, `column` for the keys that are read, `d` for features of a head.
`key_row` is 1 where one text serves all rows, else `row`; `key_head` is smaller than `head` with grouped queries.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from toushi.hooks import torch_private

BLOCK_SCORES = 1 << 26  # scores in memory at once: 256 MB in fp32. A GPU pays for each block with several launches
CPU_BLOCK_SCORES = 1 << 18  # on a CPU, whose cache they must fit
ROW_BY_ROW = {"cpu"}  # devices on which a copy of the queries costs more than a call for each row of the batch
RECOMPUTE_MAX_KEYS = 512  # up to here the model's own call is left alone, and reading computes the softmax again

Query = Float[Tensor, "row head query d"]
Key = Float[Tensor, "key_row key_head key d"]
Value = Float[Tensor, "key_row key_head key width"]
Output = Float[Tensor, "row head query width"]
LogSumExp = Float[Tensor, "row head query"]
Bias = Float[Tensor, "..."]  # added to the scores; broadcasts to [row, head, query, key]
Mask = Bool[Tensor, "..."] | Bias  # True = look


class AttentionOutput(NamedTuple):
    output: Output
    lse: LogSumExp | None  # fp32 or wider; None where the kernel gives none
    kernel: str  # the name of what computed the output


# --- kernels that give their log-sum-exp ---


def flash(
    query: Query, key: Key, value: Value, bias: Bias | None, causal: bool, scale: float | None
) -> tuple[Output, LogSumExp]:
    """CUDA. Takes no mask, and heads in multiples of 8: PyTorch pads them before it calls the kernel, as this does."""
    width = query.shape[-1]
    query, key, value = (F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value))
    scale = width**-0.5 if scale is None else scale
    output, lse = torch_private.flash_attention(query, key, value, causal, scale)
    return output[..., :width], lse[..., : query.shape[2]]


def efficient(
    query: Query, key: Key, value: Value, bias: Bias | None, causal: bool, scale: float | None
) -> tuple[Output, LogSumExp]:
    """CUDA. The mask's rows must be aligned. Its lse is padded to a multiple of 32 queries."""
    if bias is not None:
        keys = key.shape[2]
        full = (query.shape[0], query.shape[1], query.shape[2], keys)
        bias = F.pad(bias.expand(*bias.shape[:-1], keys), (0, -keys % 8))[..., :keys].expand(full)
    output, lse = torch_private.efficient_attention(query, key, value, bias, causal, scale)
    lse = lse[..., : query.shape[2]]
    return output, lse if bias is None else lse.masked_fill(lse == -torch.inf, 0.0)


def cudnn(
    query: Query, key: Key, value: Value, bias: Bias | None, causal: bool, scale: float | None
) -> tuple[Output, LogSumExp]:
    output, lse = torch_private.cudnn_attention(query, key, value, bias, causal, scale)
    return output, lse[..., 0].masked_fill(lse[..., 0] == -torch.inf, 0.0)


KERNELS: dict[str, Callable[..., tuple[Output, LogSumExp]]] = {
    "flash-cpu": torch_private.flash_attention_cpu,
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


def choose_kernel(
    query: Float[Tensor, "... query d"],
    key: Float[Tensor, "... key d"],
    value: Float[Tensor, "... key width"],
    mask: Mask | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    """The name of the kernel that PyTorch would choose for this call now: a key of KERNELS, "math" or "other"."""
    choice = torch_private.fused_attention_choice(query, key, value, mask, dropout, causal, scale, enable_gqa)
    name = NAMES.get(choice, "other")
    if name == "flash" and query.device.type == "cpu":
        return "flash-cpu" if query.ndim == 4 else "math"  # torch 2.15 answers flash for three axes, too
    return name


def attend(
    original: Callable[..., Tensor],
    query: Float[Tensor, "... query d"],
    key: Float[Tensor, "... key d"],
    value: Float[Tensor, "... key width"],
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    recompute_max_keys: int = 0,
) -> AttentionOutput:
    """What `original(query, key, value, ...)` returns, bit for bit, with the log-sum-exp where a kernel gives it.

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention`. `original` is called, and there is no
    log-sum-exp, where no kernel with a log-sum-exp would serve (no keys, unequal widths, dropout, tensor subclasses),
    where `original` is another library's replacement, and for up to `recompute_max_keys` keys.
    """
    kernel = "replaced"
    if original is torch_private.builtin_attention:
        kernel = choose_kernel(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        plain = type(query) is Tensor and type(key) is Tensor and type(value) is Tensor and dropout_p == 0.0
        plain = plain and not (query.dtype == torch.float32 and reduced_precision(query))  # its lse would be, too
        plain = plain and query.ndim == key.ndim == value.ndim == 4  # all that a kernel takes, whatever torch answers
        if plain and kernel in KERNELS and key.shape[-2] > recompute_max_keys and takes_mask(kernel, query, attn_mask):
            bias = additive_mask(attn_mask, query.dtype, masked_value(kernel, query))
            output, lse = KERNELS[kernel](query, key, value, bias, is_causal, scale)
            return AttentionOutput(output, lse, kernel)
    output = original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return AttentionOutput(output, None, kernel)


def takes_mask(kernel: str, query: Query, mask: Mask | None) -> bool:
    """Whether the kernel, called directly, does with this mask what PyTorch does. CUDA's flash kernel takes none."""
    if mask is None or kernel in ("flash-cpu", "efficient"):
        return True
    return kernel == "cudnn" and (mask.dtype != torch.bool or masked_value(kernel, query) is not None)


def masked_value(kernel: str, query: Query) -> float | None:
    """The number that PyTorch puts for False into a boolean mask before it calls the kernel; None if that is unknown."""
    return cudnn_masked_value(query.device, query.dtype) if kernel == "cudnn" else -torch.inf


@lru_cache
def cudnn_masked_value(device: torch.device, dtype: torch.dtype) -> float | None:
    """For cuDNN: -65504 in torch 2.10, -inf after a fix of March 2026. Found by trying, whatever release has the fix.

    A query that may look nowhere tells the two apart. A generator of its own leaves the model's random numbers alone.
    """
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 64, 64, generator=generator, device=device, dtype=dtype).unbind()
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool, device=device)
    mask[..., 0, :] = False
    try:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            expected = torch_private.builtin_attention(query, key, value, mask)
        for number in (-torch.inf, -65504.0):
            if torch.equal(cudnn(query, key, value, additive_mask(mask, dtype, number), False, None)[0], expected):
                return number
    except RuntimeError:  # no cuDNN kernel for this device or dtype
        pass
    return None


def additive_mask(mask: Mask | None, dtype: torch.dtype, masked: float | None = -torch.inf) -> Bias | None:
    """A boolean mask (True = look) as numbers to add to the scores, `masked` where it is False.

    Other masks are returned as they are.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    assert masked is not None, "takes_mask was asked first"
    return torch.where(mask, 0.0, masked).to(dtype)


def autocast_inputs(query: Query, key: Key, value: Value, mask: Mask | None) -> tuple[Query, Key, Value, Mask | None]:
    """The tensors in the dtype that autocast gives to attention; as they are when autocast is off.

    The kernels above lie below autocast. Without this, their output would not be that of the model.
    """
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x

    return cast(query), cast(key), cast(value), None if mask is None else cast(mask)


# --- probabilities ---

Rows = slice | list[int]
Columns = slice | Sequence[int] | Int[Tensor, " column"]
Index = slice | Int[Tensor, " index"]


def index_of(numbers: slice | Sequence[int] | Tensor, device: torch.device) -> Index:
    """The numbers as a slice where they are evenly spaced, else as a tensor on the device.

    Indexing with a list would copy it to a GPU each time, and wait for that.
    """
    if isinstance(numbers, slice | Tensor):
        return numbers
    first, step = (numbers[0], numbers[1] - numbers[0]) if len(numbers) > 1 else ((*numbers, 0)[0], 1)
    if step > 0 and first >= 0 and list(numbers) == list(range(first, first + step * len(numbers), step)):
        return slice(first, first + step * (len(numbers) - 1) + 1 if numbers else first, step)
    return _index_tensor(tuple(numbers), device)


@lru_cache(64)
def _index_tensor(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


class AttentionInputs(NamedTuple):
    """All that attention probabilities depend on."""

    query: Query
    key: Key
    scale: float
    mask: Mask | None = None
    first: int | None = None  # causal: query i sees keys 0..first + i

    def select(self, rows: Rows, queries: slice) -> "AttentionInputs":
        """The inputs of these rows of the batch, and of these queries in each."""
        index = index_of(rows, self.query.device)
        key = self.key if self.key.shape[0] == 1 else self.key[index]
        mask, first = self.mask, self.first
        if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
            mask = mask[index]
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        if first is not None:
            first += queries.start or 0
        return AttentionInputs(self.query[index][:, :, queries], key, self.scale, mask, first)


def reduced_precision(query: Tensor) -> bool:
    """Whether fp32 matrix products on the device of `query` may be rounded to TF32 or bf16."""
    backend = torch.backends.cuda if query.is_cuda else torch.backends.mkldnn
    matmul = backend.matmul  # pyright: ignore[reportAttributeAccessIssue]  # mkldnn has it at run time
    return matmul.fp32_precision not in ("none", "ieee")  # torch.set_float32_matmul_precision shows there too


def working_dtype(query: Tensor) -> torch.dtype:
    """fp32; fp64 where fp32 products are rounded, or q is fp64 already."""
    wide = query.dtype == torch.float64 or (query.device.type != "mps" and reduced_precision(query))
    return torch.float64 if wide else torch.float32


def scaled_keys(inputs: AttentionInputs, columns: Index, dtype: torch.dtype) -> Float[Tensor, "key_row head column d"]:
    """The keys of these columns times the scale, one for each head of the query."""
    key = inputs.key[:, :, columns].to(dtype) * inputs.scale
    heads = inputs.query.shape[1]
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)


def scores(
    inputs: AttentionInputs,
    key: Float[Tensor, "key_row head column d"],
    columns: Index,
    buffer: Float[Tensor, " scores"] | None = None,
) -> Float[Tensor, "row head column query"]:
    """q k^T * scale + mask at these columns, in the memory of `buffer` if that is given. `key`: their `scaled_keys`."""
    query = inputs.query.to(key.dtype)
    rows, heads, length, _ = query.shape
    shape = (rows, heads, key.shape[2], length)
    result = query.new_empty(shape) if buffer is None else buffer[: math.prod(shape)].view(shape)
    if query.device.type in ROW_BY_ROW:
        # The heads of one row can be multiplied without a copy; those of all rows together cannot.
        keys = key.unbind() if key.shape[0] == rows else key.unbind() * rows
        for row_key, row_query, row_scores in zip(keys, query.transpose(2, 3).unbind(), result.unbind()):
            torch.bmm(row_key, row_query, out=row_scores)
    else:
        torch.matmul(key, query.transpose(2, 3), out=result)
    if inputs.mask is not None:
        mask = inputs.mask if inputs.mask.dim() > 1 else inputs.mask[None]
        mask = mask if mask.shape[-1] > 1 else mask.expand(*mask.shape[:-1], inputs.key.shape[2])
        mask = mask[..., columns].transpose(-1, -2)
        result = result.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else result.add_(mask)
    if inputs.first is not None:
        key_index = torch.arange(inputs.key.shape[2], device=result.device)[columns]
        last_key = inputs.first + torch.arange(length, device=result.device)  # of each query
        result.masked_fill_(key_index[:, None] > last_key, -torch.inf)
    return result


def blocks(inputs: AttentionInputs, columns: int) -> Iterator[tuple[slice, slice]]:
    """The blocks (rows, queries) in which `columns` columns of the scores are computed."""
    rows, heads, queries, _ = inputs.query.shape
    limit = min(BLOCK_SCORES, CPU_BLOCK_SCORES) if inputs.query.device.type == "cpu" else BLOCK_SCORES
    if rows * heads * columns * queries <= limit:
        yield slice(0, rows), slice(0, queries)
        return
    size = max(1, limit // max(1, heads * columns))
    for row in range(rows):
        for start in range(0, queries, size):
            yield slice(row, row + 1), slice(start, min(start + size, queries))


def log_sum_exp(inputs: AttentionInputs) -> LogSumExp:
    """log of the sum over keys of exp(score). 0 for a query that may look nowhere, as in the kernels."""
    dtype = working_dtype(inputs.query)
    lse = inputs.query.new_empty(inputs.query.shape[:3], dtype=dtype)
    key = scaled_keys(inputs, slice(None), dtype)
    for rows, queries in blocks(inputs, inputs.key.shape[2]):
        keys = key if len(key) == 1 else key[rows]
        lse[rows, :, queries] = scores(inputs.select(rows, queries), keys, slice(None)).logsumexp(dim=2)
    return lse.masked_fill_(lse == -torch.inf, 0.0)


def softmax_(scores: Float[Tensor, "row head key query"]) -> Float[Tensor, "row head key query"]:
    """The softmax over the keys, in place. Zeros for a query that may look nowhere."""
    if not scores.shape[2]:
        return scores
    # torch.softmax takes twice the time: the keys are not the last axis.
    top = scores.amax(dim=2, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    scores.sub_(top).exp_()
    return scores.mul_(scores.sum(dim=2, keepdim=True).clamp_(min=1).reciprocal_())


def probabilities(
    inputs: AttentionInputs,
    lse: LogSumExp | None,
    columns: Columns,
    mean: bool = False,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "row head column query"] | Float[Tensor, "row column query"]:
    """Attention probabilities at these columns: [row, head, column, query].

    With `mean` they are averaged over the heads: [row, column, query]. Rounded to `dtype`, if given, at the very end.
    `lse` is the log-sum-exp of the scores, if it is known.
    """
    (rows, heads, queries, _), keys = inputs.query.shape, inputs.key.shape[2]
    recompute = lse is None and keys <= RECOMPUTE_MAX_KEYS
    if lse is None and not recompute:
        lse = log_sum_exp(inputs)
    count = len(range(*columns.indices(keys))) if isinstance(columns, slice) else len(columns)
    shape = (rows, count, queries) if mean else (rows, heads, count, queries)
    working = working_dtype(inputs.query)
    result = inputs.query.new_empty(shape, dtype=dtype or working)
    columns = index_of(columns, inputs.query.device)
    taken = slice(None) if recompute else columns
    key = scaled_keys(inputs, taken, working)
    buffer = None  # used again for each block: new memory costs as much as the arithmetic
    for row_block, query_block in blocks(inputs, keys if recompute else count):
        part = inputs.select(row_block, query_block)
        block = scores(part, key if len(key) == 1 else key[row_block], taken, buffer)
        buffer = block.view(-1) if buffer is None else buffer
        if lse is None:
            block = softmax_(block)[:, :, columns]
        else:
            block.sub_(lse[row_block, :, None, query_block]).exp_()
        result[row_block, ..., query_block] = block.mean(1) if mean else block
    return result
