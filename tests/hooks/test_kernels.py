"""The probabilities of `toushi.hooks.kernels` against an explicit softmax in fp64, and the output against PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F

from toushi.hooks import kernels
from toushi.hooks.kernels import AttentionInputs, additive_mask, attend, log_sum_exp, probabilities

SDPA = F.scaled_dot_product_attention
AVAILABLE = ["flash-cpu", "math"] + (["flash", "efficient", "cudnn"] if torch.cuda.is_available() else [])


def inputs(rows=2, heads=3, queries=33, keys=21, width=32, dtype=torch.float32, seed=0, key_heads=None):
    generator = torch.Generator().manual_seed(seed)
    # As a model makes them: heads split from one projection, so nothing is contiguous.
    q = torch.randn(rows, queries, heads, width, generator=generator).transpose(1, 2)
    k, v = torch.randn(2, rows, keys, key_heads or heads, width, generator=generator).transpose(2, 3)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def masks(rows, heads, queries, keys):
    generator = torch.Generator().manual_seed(7)
    keep = torch.rand(rows, heads, queries, keys, generator=generator) > 0.3
    keep[..., 0] = True
    lengths = torch.arange(keys) < torch.tensor([keys, 5])[:rows, None]
    return {
        "none": None,
        "padding": lengths[:, None, None, :],
        "boolean": keep,
        "queries": keep[0, 0],
        "additive": torch.randn(rows, heads, queries, keys, generator=generator) * 3,
        "heads": torch.randn(1, heads, queries, keys, generator=generator),
    }


def explicit(q, k, mask=None, causal=False, scale=None):
    """softmax(q k^T) in fp64, [row, head, key, query]; zeros where a query may look nowhere."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0).mT


def read(q, k, attended, columns=slice(None), mask=None, causal=False, scale=None):
    """As `Call` does it, without a hook: these columns, and what all others got."""
    what, every = (
        AttentionInputs(q, k, scale or q.shape[-1] ** -0.5, mask, 0 if causal else None),
        list(range(k.shape[2])),
    )
    taken = every[columns] if isinstance(columns, slice) else columns
    others = [column for column in every if column not in taken]
    return probabilities(what, attended.lse, columns), probabilities(what, attended.lse, others).sum(2)


@pytest.mark.parametrize("mask", masks(2, 3, 33, 21))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-4), (torch.float64, 1e-12)])
def test_exact_with_every_mask(mask, dtype, tolerance):
    q, k, v = inputs(dtype=dtype)
    mask = masks(2, 3, 33, 21)[mask]
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    attended = attend(SDPA, q, k, v, mask)
    assert attended.kernel == "flash-cpu"
    assert torch.equal(attended.output, SDPA(q, k, v, attn_mask=mask))
    truth = explicit(q, k, mask)
    columns = [0, 3, 20]
    here, rest = read(q, k, attended, columns, mask)
    torch.testing.assert_close(here.double(), truth[:, :, columns], atol=tolerance, rtol=0)
    others = [c for c in range(21) if c not in columns]
    torch.testing.assert_close(rest.double(), truth[:, :, others].sum(2), atol=tolerance * 10, rtol=0)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_every_kernel_keeps_the_same_contract(kernel, causal, scale, monkeypatch):
    """Output as without us, and probabilities that are right, whichever kernel gave the log-sum-exp."""
    dtype = torch.float32 if kernel in ("flash-cpu", "math", "efficient") else torch.float16
    q, k, v = (x.to("cpu" if "cpu" in kernel or kernel == "math" else "cuda") for x in inputs(dtype=dtype))
    wanted = {"flash-cpu": "FLASH_ATTENTION", "math": "MATH", "cudnn": "CUDNN_ATTENTION"}
    backend = wanted.get(kernel, kernel.upper() + "_ATTENTION")
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        attended = attend(SDPA, q, k, v, is_causal=causal, scale=scale)
        assert torch.equal(attended.output, SDPA(q, k, v, is_causal=causal, scale=scale))
    assert attended.kernel == kernel
    truth = explicit(q, k, causal=causal, scale=scale).float()
    here, _ = read(q, k, attended, causal=causal, scale=scale)
    torch.testing.assert_close(here, truth, atol=2e-6 if dtype == torch.float32 else 2e-4, rtol=0)


@pytest.mark.parametrize("mask", masks(2, 3, 33, 21))
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 22])
@pytest.mark.parametrize("few", [0, 512])
def test_without_a_log_sum_exp_from_the_kernel(mask, chunk, few, monkeypatch):
    """By a softmax of everything, or by one of our own where there are many keys; in chunks."""
    monkeypatch.setattr(kernels, "BLOCK_SCORES", chunk)
    monkeypatch.setattr(kernels, "RECOMPUTE_MAX_KEYS", few)
    q, k, v = inputs()
    mask = masks(2, 3, 33, 21)[mask]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attended = attend(SDPA, q, k, v, mask)
        assert torch.equal(attended.output, SDPA(q, k, v, attn_mask=mask))
    assert attended.kernel == "math" and attended.lse is None
    truth = explicit(q, k, mask)
    here, rest = read(q, k, attended, slice(2, 6), mask)
    torch.testing.assert_close(here.double(), truth[:, :, 2:6], atol=2e-6, rtol=0)
    torch.testing.assert_close((here.sum(2) + rest).double(), torch.ones(2, 3, 33).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", masks(2, 3, 33, 21))
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 22])
def test_the_mean_over_heads_is_that_of_the_whole(mask, chunk, monkeypatch):
    """Averaged and rounded chunk by chunk."""
    q, k, v = inputs()
    mask = masks(2, 3, 33, 21)[mask]
    attended, what = attend(SDPA, q, k, v, mask), AttentionInputs(q, k, 32**-0.5, mask)
    whole = probabilities(what, attended.lse, [2, 5, 6])
    monkeypatch.setattr(kernels, "BLOCK_SCORES", chunk)
    averaged = probabilities(what, attended.lse, [2, 5, 6], mean=True)
    torch.testing.assert_close(averaged, whole.mean(1), atol=2e-7, rtol=0)
    assert torch.equal(probabilities(what, attended.lse, [2, 5, 6], True, torch.float16), averaged.half())


@pytest.mark.parametrize("mask", masks(2, 3, 33, 21))
def test_all_rows_in_one_product_are_the_same(mask, monkeypatch):
    """As GPUs multiply them."""
    q, k, _ = inputs()
    what = AttentionInputs(q, k, 32**-0.5, masks(2, 3, 33, 21)[mask])
    row_by_row = probabilities(what, None, slice(None))
    monkeypatch.setattr(kernels, "ROW_BY_ROW", set())
    torch.testing.assert_close(probabilities(what, None, slice(None)), row_by_row, atol=2e-7, rtol=0)
    one_text = what._replace(key=k[:1], mask=None)
    truth = explicit(q, k[:1].expand_as(k)).float()
    torch.testing.assert_close(probabilities(one_text, None, slice(None)), truth, atol=2e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 100, 10_000])
def test_chunks_do_not_change_the_log_sum_exp(chunk, monkeypatch):
    q, k, _ = inputs()
    what = AttentionInputs(q, k, 0.2, masks(2, 3, 33, 21)["boolean"])
    whole = log_sum_exp(what)
    monkeypatch.setattr(kernels, "BLOCK_SCORES", chunk)
    torch.testing.assert_close(log_sum_exp(what), whole, atol=1e-6, rtol=0)
    causal = AttentionInputs(q, k, 0.2, first=0)
    lse = log_sum_exp(causal)
    torch.testing.assert_close(probabilities(causal, lse, slice(None)).sum(2), torch.ones(2, 3, 33), atol=1e-5, rtol=0)


def test_grouped_queries():
    q, k, v = inputs(heads=6, key_heads=2)
    attended = attend(SDPA, q, k, v, enable_gqa=True)
    assert attended.kernel == "flash-cpu"
    assert torch.equal(attended.output, SDPA(q, k, v, enable_gqa=True))
    here, _ = read(q, k, attended)
    torch.testing.assert_close(here.double(), explicit(q, k), atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", ["unequal widths", "no keys", "dropout", "three axes", "keys not contiguous"])
def test_what_no_kernel_serves_goes_to_the_original(case):
    q, k, v = inputs()
    dropout = 0.0
    if case == "unequal widths":
        v = v[..., :16]
    elif case == "no keys":
        k, v = k[:, :, :0], v[:, :, :0]
    elif case == "dropout":
        dropout = 0.5
    elif case == "three axes":
        q, k, v = q[0], k[0], v[0]
    else:
        k = k.mT.contiguous().mT
    torch.manual_seed(0)
    attended = attend(SDPA, q, k, v, dropout_p=dropout)
    torch.manual_seed(0)
    assert torch.equal(attended.output, SDPA(q, k, v, dropout_p=dropout))
    assert attended.kernel == "math" and attended.lse is None
    if case != "three axes":
        here, rest = read(q, k, attended)
        torch.testing.assert_close(here.double(), explicit(q, k), atol=2e-6, rtol=0)
        assert here.shape == (2, 3, k.shape[2], 33) and not rest.any()


def test_somebody_elses_replacement_is_called():
    calls = []

    def theirs(*arguments, **named):
        calls.append(1)
        return SDPA(*arguments, **named) + 1

    q, k, v = inputs()
    attended = attend(theirs, q, k, v)
    assert calls and attended.kernel == "replaced" and torch.equal(attended.output, SDPA(q, k, v) + 1)


@pytest.mark.parametrize("kernel", ["flash-cpu", "math"])
def test_a_query_that_may_look_nowhere_has_zeros(kernel):
    q, k, v = inputs()
    mask = torch.ones(2, 1, 33, 21, dtype=torch.bool)
    mask[0, :, 4] = False
    backend = "MATH" if kernel == "math" else "FLASH_ATTENTION"
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        attended = attend(SDPA, q, k, v, mask)
    here, _ = read(q, k, attended, mask=mask)
    assert not here[0, :, :, 4].any() and torch.isfinite(here).all()
    torch.testing.assert_close(here.sum(2)[:, :, 5:], torch.ones(2, 3, 28), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_keys_are_exact_however_large_the_scores_are(dtype):
    """As of a text encoder that was trained: a difference of scores that were rounded apart would be off by 1e-4."""
    q, k, v = inputs(dtype=dtype)
    q = q * 60
    attended = attend(SDPA, q, k, v, recompute_max_keys=kernels.RECOMPUTE_MAX_KEYS)
    assert attended.lse is None and torch.equal(attended.output, SDPA(q, k, v))
    here, _ = read(q, k, attended)
    assert (here.double() - explicit(q, k)).abs().max() < 2e-5
    rough, _ = read(q, k, attend(SDPA, q, k, v))
    assert (rough.double() - explicit(q, k)).abs().max() > (here.double() - explicit(q, k)).abs().max()


def test_scores_are_never_taken_in_bf16():
    """q k^T in bf16 is off by about 1e-2 here; through fp32 by 2e-4 at most."""
    q, k, v = inputs(queries=200, keys=64, width=128, dtype=torch.bfloat16)
    q, k = q * 2, k * 2
    truth = explicit(q, k)
    here, _ = read(q, k, attend(SDPA, q, k, v))
    assert here.dtype == torch.float32
    assert (here - truth).abs().max() < 2e-4
    rough = (q @ k.mT * 128**-0.5).float().softmax(-1).mT
    assert (rough - truth).abs().max() > 1e-3


def test_a_precision_that_was_set_for_one_backend_hinders_nothing():
    """Then torch refuses to tell one precision for all of them."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert kernels.working_dtype(inputs(queries=4, keys=4, width=8)[0]) == torch.float32
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
    assert torch.get_float32_matmul_precision() == "highest"


def test_reduced_precision_products_are_not_used():
    q, k, v = inputs(queries=256, keys=256, width=64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert kernels.working_dtype(q) == torch.float64
        here, _ = read(q, k, attend(SDPA, q, k, v))
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(here, explicit(q, k).to(here), atol=2e-6, rtol=0)


@pytest.mark.parametrize("queries", [32, 40, 77])
@pytest.mark.parametrize("width", [64, 40, 37])
@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_cuda_kernels_give_output_and_log_sum_exp_of_the_right_shape(kernel, queries, width):
    """There may be no GPU here: on meta tensors PyTorch checks the arguments and says what shapes come back."""
    q = torch.empty(2, 3, queries, width, device="meta", dtype=torch.float16)
    k = torch.empty(2, 3, 21, width, device="meta", dtype=torch.float16)
    bias = torch.empty(2, 1, 1, 21, device="meta", dtype=torch.float16) if kernel == "efficient" else None
    output, lse = kernels.KERNELS[kernel](q, k, k, bias, False, None)
    assert output.shape == (2, 3, queries, width)
    assert lse.shape == (2, 3, queries) and lse.dtype == torch.float32


def test_the_efficient_kernel_gets_an_aligned_mask(monkeypatch):
    seen = {}

    def record(query, key, value, bias, compute, dropout, causal, scale):
        seen.update(shape=tuple(bias.shape), strides=bias.stride(), compute=compute)
        return query, torch.zeros(2, 3, 64), None, None

    monkeypatch.setattr(torch.ops.aten._scaled_dot_product_efficient_attention, "default", record)
    q, k, v = inputs()
    _, lse = kernels.efficient(q, k, v, additive_mask(masks(2, 3, 33, 21)["queries"], q.dtype), False, None)
    assert seen["shape"] == (2, 3, 33, 21) and seen["compute"]
    assert all(stride % 8 == 0 for stride in seen["strides"][:-1])
    assert lse.shape == (2, 3, 33)


CHOICES = [
    (1, None, "flash"),
    (1, "mask", None),
    (2, None, "efficient"),
    (2, "mask", "efficient"),
    (3, None, "cudnn"),
    (3, "mask", None),
    (0, None, None),
    (4, None, None),
]


@pytest.mark.parametrize("choice, mask, expected", CHOICES)
def test_the_kernel_follows_what_pytorch_would_choose(choice, mask, expected, monkeypatch):
    """As on a GPU: the kernels are stand-ins that only say that they were called."""
    q, k, v = inputs()
    mask = masks(2, 3, 33, 21)["padding"] if mask else None
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *a, **k: choice)
    name = kernels.choose_kernel(q.to("meta"), k, v, mask, 0.0, False, None, False)
    assert name == {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "other"}[choice]
    monkeypatch.setattr(kernels, "choose_kernel", lambda *a: name)
    for kernel in kernels.KERNELS:
        monkeypatch.setitem(kernels.KERNELS, kernel, lambda *a, kernel=kernel: (kernel, "lse"))
    attended = attend(SDPA, q, k, v, mask)
    assert (attended.output if attended.lse is not None else None) == expected and attended.kernel == name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", [slice(0, 9), slice(7, 12), slice(5, None)])
def test_some_queries_are_the_same_as_in_the_whole(causal, queries):
    q, k, v = inputs()
    attended = attend(SDPA, q, k, v, is_causal=causal)
    what = AttentionInputs(q, k, 32**-0.5, None, 0 if causal else None)
    some = probabilities(what.select([1], queries), attended.lse[[1]][:, :, queries], [2, 5, 8])
    whole = probabilities(what, attended.lse, [2, 5, 8])[[1]][..., queries]
    torch.testing.assert_close(some, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mask", masks(2, 3, 33, 21))
@pytest.mark.parametrize("rows", [slice(1, 2), [1, 0]])
def test_some_rows_are_the_same_as_in_the_whole(mask, rows):
    q, k, v = inputs()
    attended = attend(SDPA, q, k, v, masks(2, 3, 33, 21)[mask])
    mask = masks(2, 3, 33, 21)[mask]
    what = AttentionInputs(q, k, 32**-0.5, mask)
    some = probabilities(what.select(rows, slice(None)), attended.lse[rows], [2, 5])
    torch.testing.assert_close(some, read(q, k, attended, [2, 5], mask)[0][rows], atol=0, rtol=0)


def test_one_text_for_all_rows():
    q, k, v = inputs()
    attended = attend(SDPA, q, k[:1].expand_as(k), v)
    one = AttentionInputs(q, k[:1], 32**-0.5)
    torch.testing.assert_close(
        probabilities(one, attended.lse, slice(None)).double(), explicit(q, k[:1]), atol=2e-6, rtol=0
    )
    assert one.select([1], slice(None)).key.shape[0] == 1


# --- what a GPU would wait for ---


@pytest.mark.parametrize("numbers", [[], [0], [5], [1, 2, 3], [0, 3, 6], [2, 1, 0], [1, 1], [0, 1, 3], [-1, 0]])
def test_an_index_is_a_slice_where_it_can_be(numbers):
    index, values = kernels.index_of(numbers, torch.device("cpu")), torch.arange(9)
    assert torch.equal(values[index], values[torch.tensor(numbers, dtype=torch.long)])
    assert isinstance(index, slice) == (numbers in ([], [0], [5], [1, 2, 3], [0, 3, 6]))
    assert index is kernels.index_of(numbers, torch.device("cpu")) or isinstance(index, slice)  # copied once


def test_keys_are_converted_once_however_many_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "CPU_BLOCK_SCORES", 64)
    calls, real = [], kernels.scaled_keys
    monkeypatch.setattr(kernels, "scaled_keys", lambda *a: calls.append(a) or real(*a))
    q, k, _ = inputs(keys=600)
    found = probabilities(AttentionInputs(q, k, 0.2), None, [0, 7, 8])
    assert len(calls) == 2  # once for the log-sum-exp, once for the columns
    torch.testing.assert_close(found, explicit(q, k, scale=0.2)[:, :, [0, 7, 8]].float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("number", [-math.inf, -65504.0, -1.0])
def test_cudnn_gets_the_mask_that_pytorch_would_give_it(monkeypatch, number):
    """A softmax stands in for cuDNN, and for PyTorch one that puts this number for False."""

    def cudnn(query, key, value, bias, causal, scale):
        scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
        return scores.softmax(-1).nan_to_num(0.0) @ value, scores.logsumexp(-1)[..., None]

    def builtin(query, key, value, mask, *_, **__):
        return cudnn(query, key, value, additive_mask(mask, query.dtype, number), False, None)[0]

    monkeypatch.setattr(kernels.torch_private, "cudnn_attention", cudnn)
    monkeypatch.setattr(kernels.torch_private, "builtin_attention", builtin)
    monkeypatch.setattr(kernels, "choose_kernel", lambda *a: "cudnn")
    kernels.cudnn_masked_value.cache_clear()
    try:
        (q, k, v), mask = inputs(), masks(2, 3, 33, 21)["boolean"]
        attended = attend(builtin, q, k, v, mask)
        assert torch.equal(attended.output, builtin(q, k, v, mask))  # whatever number it is
        assert (attended.lse is None) == (number == -1.0)  # a number that is not known: the call is left alone
        wanted = explicit(q, k, mask).float()
        found = probabilities(AttentionInputs(q, k, 32**-0.5, mask), attended.lse, slice(None))
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
    finally:
        kernels.cudnn_masked_value.cache_clear()
