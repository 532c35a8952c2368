"""The wires: nothing changes, nothing is missed in silence, nothing is left behind."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toushi.hooks.attention import AttentionHook, _stack
from toushi.hooks.hook_error import HookError
from toushi.hooks.module_hooks import argument_hooks, state_hooks

SDPA = F.scaled_dot_product_attention


class Attention(nn.Module):
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.project = heads, nn.Linear(width, 3 * width)

    def forward(self, x, mask=None):
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = Attention(), Attention()
        self.eval().requires_grad_(False)
        self.trouble: BaseException | None = None

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if self.trouble is not None:
            raise self.trouble
        return self.second(x)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    return torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    assert F.scaled_dot_product_attention is SDPA
    assert not _stack()


def sites(model):
    return {"first": model.first, "second": model.second}


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_watched_model_computes_the_same_and_is_seen(model, x):
    plain = model(x)
    calls = []
    with AttentionHook(sites(model), calls.append) as watch:
        assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain)
    assert [call.site for call in calls] == ["first", "second"] * 2
    assert calls[0].shape == (2, 2, 7, 7) and calls[0].kernel == "flash-cpu"
    assert watch.run_counts == watch.call_counts == {"first": 2, "second": 2} and not watch.unread_modules()
    assert not hooks_of(model)


@pytest.mark.parametrize("few", [0, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_those_of_an_explicit_softmax(model, x, dtype, few, monkeypatch):
    """Both with the kernel's log-sum-exp and, as for few keys, without."""
    monkeypatch.setattr("toushi.hooks.attention.RECOMPUTE_MAX_KEYS", few)
    plain = model.to(dtype)(x.to(dtype))
    model, x = model.to(dtype), x.to(dtype)
    found = []
    with AttentionHook({"first": model.first}, lambda call: found.append(call.probabilities())):
        assert torch.equal(model(x), plain)
    q, k, _ = model.first.project(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).double()
    truth = (q @ k.mT * 8**-0.5).softmax(-1).mT
    torch.testing.assert_close(found[0].double(), truth, atol=2e-6 if dtype == torch.float32 else 2e-4, rtol=0)


def test_text_columns_and_the_rest_sum_to_one(model, x):
    sums = []

    def see(call):
        sums.append(call.probabilities(slice(2, 5)).sum(2) + call.probabilities([0, 1, 5, 6]).sum(2))

    with AttentionHook(sites(model), see):
        model(x)
    for one in sums:
        torch.testing.assert_close(one, torch.ones_like(one), atol=1e-5, rtol=0)


@pytest.mark.parametrize("few", [0, 512])
def test_some_queries_are_those_rows_of_the_whole(few, monkeypatch):
    monkeypatch.setattr("toushi.hooks.attention.RECOMPUTE_MAX_KEYS", few)
    draw = torch.Generator().manual_seed(2)
    module, calls = Attention().requires_grad_(False), []
    x, mask = torch.randn(2, 7, 16, generator=draw), torch.randn(2, 1, 7, 7, generator=draw)
    with AttentionHook({"one": module}, calls.append):
        module(x, mask)
    (call,) = calls
    some, columns = slice(2, 6), [0, 3]
    whole = call.probabilities(columns)[1:, :, :, some]
    torch.testing.assert_close(call.probabilities(columns, [1], some), whole)
    torch.testing.assert_close(call.probabilities(columns, [1], some, True), whole.mean(1))


@pytest.mark.parametrize("trouble", [ValueError("inside"), KeyboardInterrupt()])
def test_wires_are_gone_after_an_exception_in_the_model(model, x, trouble):
    plain = model(x)
    model.trouble = trouble
    with pytest.raises(type(trouble)), AttentionHook({"whole": model, **sites(model)}, lambda call: None):
        model(x)
    assert F.scaled_dot_product_attention is SDPA and not _stack() and not hooks_of(model)
    model.trouble = None
    assert torch.equal(model(x), plain)


def test_a_watch_recovers_from_an_interrupt_that_was_caught_inside(model, x):
    seen = []
    with AttentionHook({"whole": model}, lambda call: seen.append(call.site)):
        model.trouble = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            model(x)
        model.trouble = None
        model(x)
        assert not _stack()
    assert seen == ["whole"] * 3


def test_an_exception_in_the_watcher_stops_the_model(model, x):
    def see(call):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"), AttentionHook(sites(model), see):
        model(x)


def test_a_failing_start_leaves_no_wires(model):
    scripted = torch.jit.script(nn.Linear(2, 2))
    with (
        pytest.raises(HookError, match="scripted"),
        AttentionHook({"first": model.first, "scripted": scripted}, lambda call: None),
    ):
        pass
    assert not hooks_of(model)


def test_modules_without_a_watch_are_not_seen(model, x):
    seen = []
    with AttentionHook({"first": model.first}, lambda call: seen.append(call.site)):
        model(x)
        Model(1)(x)
        SDPA(x, x, x)
        F.scaled_dot_product_attention(x[0], x[0], x[0])
    assert seen == ["first"]


def test_watches_of_two_models_and_of_one_model_do_not_mix(model, x):
    other, seen = Model(1), []
    with AttentionHook({"a": model.first}, lambda call: seen.append(("outer", call.site))):
        with AttentionHook({"b": other.first, "a2": model.first}, lambda call: seen.append(("inner", call.site))):
            model(x)
            other(x)
        assert F.scaled_dot_product_attention is not SDPA
        model(x)
    assert sorted(seen[:2]) == [("inner", "a2"), ("outer", "a")]
    assert seen[2:] == [("inner", "b"), ("outer", "a")]


def test_watches_may_end_in_any_order(model, x):
    seen = []
    one = AttentionHook(sites(model), lambda call: seen.append(1)).__enter__()
    two = AttentionHook(sites(model), lambda call: seen.append(2)).__enter__()
    one.__exit__(None, None, None)
    model(x)
    two.__exit__(None, None, None)
    model(x)
    assert seen == [2, 2]


def test_the_innermost_watched_module_gives_the_name(model, x):
    seen = []
    with AttentionHook({"whole": model, "first": model.first}, lambda call: seen.append(call.site)):
        model(x)
    assert seen == ["first", "whole"]


def test_threads_do_not_mix(x):
    models = [Model(seed) for seed in range(4)]
    plain = [model(x) for model in models]
    results: dict[int, list] = {}

    def work(number):
        seen = []
        with AttentionHook({f"{number}.{name}": site for name, site in sites(models[number]).items()}, seen.append):
            same = all(torch.equal(models[number](x), plain[number]) for _ in range(20))
        results[number] = [same, len(seen), {call.site.split(".")[0] for call in seen}]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [True, 40, {str(number)}] for number in range(4)}


def test_another_replacement_beneath_ours(model, x, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs := lambda *a, **k: SDPA(*a, **k) * 2)
    plain, kernels = model(x), []
    with AttentionHook(sites(model), lambda call: kernels.append(call.kernel)):
        assert torch.equal(model(x), plain)
    assert F.scaled_dot_product_attention is theirs and set(kernels) == {"replaced"}
    monkeypatch.undo()


def test_another_replacement_above_ours_stays_and_sees_no_loop(model, x):
    plain, seen = model(x), []
    try:
        with AttentionHook(sites(model), lambda call: None):
            ours = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = theirs = lambda *a, **k: ours(*a, **k)
        assert F.scaled_dot_product_attention is theirs and torch.equal(model(x), plain)
        with AttentionHook(sites(model), lambda call: seen.append(call.site)):
            assert torch.equal(model(x), plain)
        assert seen == ["first", "second"]
    finally:
        F.scaled_dot_product_attention = SDPA


def test_a_compiled_model_is_seen_whole_and_compiled_again_afterwards(model, x):
    """Compiled code neither runs hooks added later nor looks the function up: it runs eagerly while watched."""
    plain = model(x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    seen = []
    with AttentionHook(sites(model), lambda call: seen.append(call.site)) as watch:
        assert torch.equal(compiled(x), plain)
    assert seen == ["first", "second"] and not watch.unread_modules()
    assert torch.equal(compiled(x), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_autocast_changes_nothing(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        found = []
        mask = torch.zeros(7, 7)
        masked = model.first(x, mask)
        with AttentionHook(sites(model), lambda call: found.append(call.probabilities())):
            assert torch.equal(model(x), plain)
            assert torch.equal(model.first(x, mask), masked)
    assert all(one.dtype == torch.float32 for one in found)
    torch.testing.assert_close(found[0].sum(2), torch.ones(2, 2, 7), atol=2e-4, rtol=0)


def test_gradients_flow_as_without_a_watch(x):
    def gradient(watched):
        model = Model().requires_grad_(True)
        if watched:
            with AttentionHook(sites(model), lambda call: call.probabilities()):
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        return model.first.project.weight.grad

    assert torch.equal(gradient(True), gradient(False))


def test_modules_that_never_ran_or_do_not_attend_are_named(model, x):
    linear = nn.Linear(16, 16)
    with AttentionHook({"idle": model.second, "linear": linear}, lambda call: None) as watch:
        linear(x)
    blind = watch.unread_modules()
    assert "did not run" in blind["idle"] and "scaled_dot_product_attention" in blind["linear"]


def test_attention_of_unexpected_shape_is_refused(x):
    class Flat(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    flat = Flat()
    with pytest.raises(HookError, match="flat: expected q of shape"), AttentionHook({"flat": flat}, lambda call: None):
        flat(x)


def test_torch_multihead_attention_is_seen(x):
    module = nn.MultiheadAttention(16, 2, batch_first=True).train()  # eval() has a fused path below Python
    seen = []
    with AttentionHook({"mha": module}, seen.append):
        module(x, x, x, need_weights=False)
    assert seen[0].shape == (2, 2, 7, 7)


def test_states_are_what_the_modules_return(model, x):
    seen = {}
    with state_hooks(sites(model), seen.__setitem__):
        out = model(x)
    assert torch.equal(seen["second"], out) and not hooks_of(model)
    assert torch.equal(seen["first"], model.first(x))


def test_states_of_something_else_are_refused():
    class Words(nn.Module):
        def forward(self):
            return {"text": 1}

    with (
        pytest.raises(HookError, match="dict came"),
        state_hooks({"words": (words := Words())}, lambda name, state: None),
    ):
        words()


def test_arguments_are_what_the_module_was_called_with(model, x):
    seen = []
    with argument_hooks({"first": (model.first, ["x", "mask"])}, lambda name, *values: seen.append((name, *values))):
        model.first(x)
        model.first(mask=None, x=x)
        model(x)
    assert [name for name, *_ in seen] == ["first"] * 3 and not hooks_of(model)
    assert all(given is x and mask is None for _, given, mask in seen)


def test_a_parameter_that_does_not_exist_is_refused(model):
    with pytest.raises(HookError, match="no parameter 'text'; it has x, mask"):
        wrong = {"first": (model.first, ["x"]), "second": (model.first, ["text"])}  # the first one is no reason to stay
        argument_hooks(wrong, lambda *values: None).__enter__()
    assert not hooks_of(model)


def test_a_call_knows_when_it_is_too_late(model, x):
    calls = []
    with AttentionHook(sites(model), calls.append):
        model(x)
    early = calls[0].probabilities()
    assert not calls[0].stale and torch.equal(calls[0].probabilities(), early)
    calls[0].inputs.query.add_(1)
    assert calls[0].stale and not calls[1].stale
