"""Laws of reading and changing attention, for whatever shapes, masks and dtypes come."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toushi.hooks.attention import AttentionHook
from toushi.hooks.attention_edits import apply_attention_edit

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


class Attending(nn.Module):
    def forward(self, query, key, value, **named):
        return F.scaled_dot_product_attention(query, key, value, **named)


@st.composite
def calls(draw, dtypes=(torch.float32,)):
    """(query, key, value, named) of one call; every query may look somewhere."""
    seed, dtype = draw(st.integers(0, 2**31)), draw(st.sampled_from(dtypes))
    width = draw(st.sampled_from([1, 3, 8, 40]))
    rows, heads = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 6]))
    queries, keys = draw(st.sampled_from([1, 2, 17, 64])), draw(st.sampled_from([1, 2, 9, 77, 600]))
    generator = torch.Generator().manual_seed(seed)
    grouped = draw(st.booleans()) and heads % 2 == 0
    few = heads // 2 if grouped else heads
    size = draw(st.sampled_from([0.1, 1.0, 10.0]))

    def random(heads, length):
        return (torch.randn(rows, heads, length, width, generator=generator) * size).to(dtype)

    named = {"enable_gqa": True} if grouped else {}
    match draw(st.sampled_from(["no mask", "bool", "additive", "causal", "scale"])):
        case "bool":
            mask = torch.rand(rows, 1, draw(st.sampled_from([1, queries])), keys, generator=generator) < 0.6
            mask[..., 0] = True
            named["attn_mask"] = mask
        case "additive":
            named["attn_mask"] = torch.randn(rows, 1, queries, keys, generator=generator).to(dtype)
        case "causal":
            named["is_causal"] = True
        case "scale":
            named["scale"] = 0.3
    return random(heads, queries), random(few, keys), random(few, keys), named


def explicit(query, key, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    """[row, head, query, key] in fp64."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).double()
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
    return scores.softmax(-1)


def seen(call, named):
    module, found = Attending(), []
    with AttentionHook({"site": module}, found.append):
        output = module(*call, **named)
    return output, found[0]


@EXAMPLES
@given(calls((torch.float32, torch.bfloat16)), st.data())
def test_what_is_read_is_the_softmax(call, data):
    query, key, value, named = call
    output, found = seen((query, key, value), named)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, **named))
    expected = explicit(query, key, **named).transpose(2, 3)
    keys = key.shape[2]
    columns = sorted(data.draw(st.sets(st.integers(0, keys - 1), min_size=1, max_size=8)))
    # Large scores make fp32 products themselves uncertain: 1e-7 of a score of 1000 is 1e-4 of a probability.
    tolerance = 2e-6 * (1 + query.abs().max().item() ** 2)
    assert (found.probabilities(columns) - expected[:, :, columns]).abs().max() < tolerance
    rest = found.probabilities([column for column in range(keys) if column not in columns]).sum(2)
    # A kernel that adds up 600 keys in bf16 is off by a few 1e-5 of the whole.
    whole = 2e-4 if query.dtype is torch.bfloat16 else 0.0
    assert (found.probabilities(columns).sum(2) + rest - 1).abs().max() < max(tolerance * 10, whole)


@EXAMPLES
@given(calls(), st.data())
def test_what_is_changed_is_the_changed_softmax(call, data):
    query, key, value, named = call
    keys = key.shape[2]
    columns = sorted(data.draw(st.sets(st.integers(0, keys - 1), min_size=1, max_size=8)))
    factor = data.draw(st.sampled_from([0.0, 0.5, 1.0, 4.0]))
    renormalise = data.draw(st.booleans())
    module = Attending()

    def change(call, value, output):
        return apply_attention_edit(call, value, output, lambda p: p * factor, columns, renormalise=renormalise)

    with AttentionHook({"site": module}, edit=change):
        found = module(query, key, value, **named)
    wanted = explicit(query, key, **named)
    wanted[..., columns] *= factor
    mass = wanted.sum(-1, keepdim=True)
    values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).double()
    expected = wanted @ values
    if renormalise:  # compared before the division, which makes rounding larger where almost nothing is left
        found = found * mass
        found, expected = found[mass[..., 0] > 1e-4], expected[mass[..., 0] > 1e-4]
    tolerance = 5e-6 * (1 + query.abs().max().item() ** 2) * value.abs().max().item()
    assert not found.numel() or (found - expected).abs().max() < tolerance
    if factor == 1 and not renormalise:  # a change that changes nothing is not even rounding
        assert torch.equal(found, F.scaled_dot_product_attention(query, key, value, **named))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lead", [5.0, 12.0, 30.0])
def test_what_is_left_shares_the_mass_however_little_it_was(dtype, lead):
    """Knocked out and renormalised is masked, also where nearly everything went to what is knocked out."""
    query, key, value = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)) for n in (16, 10, 10))
    query, key, value = (x.to(dtype) for x in (query, key, value))
    bias = torch.zeros(1, 1, 1, 10, dtype=dtype)
    bias[..., 4] = lead
    module = Attending()

    def change(call, value, output):
        return apply_attention_edit(call, value, output, torch.zeros_like, [4], renormalise=True)

    with AttentionHook({"site": module}, edit=change):
        found = module(query, key, value, attn_mask=bias)
    bias[..., 4] = -math.inf
    expected = explicit(query, key, attn_mask=bias) @ value.double()
    assert torch.allclose(found.double(), expected, atol=1e-5 if dtype is torch.float32 else 2e-2)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20)), min_size=1, max_size=4))
def test_batches_may_change_from_call_to_call(shapes):
    """Guidance that is switched off part-way halves the rows."""
    module, found = Attending(), []
    with AttentionHook({"site": module}, found.append):
        for rows, queries in shapes:
            module(torch.randn(rows, 2, queries, 8), torch.randn(rows, 2, 5, 8), torch.randn(rows, 2, 5, 8))
    assert [call.shape for call in found] == [(rows, 2, queries, 5) for rows, queries in shapes]
    assert all((call.probabilities().sum(2) - 1).abs().max() < 1e-5 for call in found)
