"""The private names of PyTorch that `toushi.hooks.torch_private` uses: that they are there and do what is needed."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend

from toushi.hooks import torch_private

KERNEL = "toushi.hooks.kernels gets no log-sum-exp from this kernel, so nothing is recorded where PyTorch chooses it"
NEEDED = {
    "torch._C._nn.scaled_dot_product_attention": "recording cannot tell PyTorch's attention from a replacement",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default": KERNEL,
    "torch.ops.aten._scaled_dot_product_flash_attention.default": KERNEL,
    "torch.ops.aten._scaled_dot_product_efficient_attention.default": KERNEL,
    "torch.ops.aten._scaled_dot_product_cudnn_attention.default": KERNEL,
    "torch._fused_sdp_choice": "toushi.hooks.kernels cannot run the kernel that PyTorch would choose",
    "torch.Tensor._version": "a tensor that was changed before it was read is not noticed",
    "torch._foreach_copy_": "training of the shipped models cannot copy its weights",
    "torch._foreach_lerp_": "training of the shipped models cannot average its weights",
    "torch.cpu._is_amx_tile_supported": "training does not know in which dtype Muon iterates",
}


@pytest.mark.parametrize("name", NEEDED)
def test_the_name_exists(name):
    try:
        operator.attrgetter(name.partition(".")[2])(torch)
    except AttributeError as error:
        pytest.fail(f"torch {torch.__version__} has no {name} ({error}): {NEEDED[name]}")


def test_the_builtin_attention_is_the_functional_one():
    assert torch_private.builtin_attention is F.scaled_dot_product_attention


def test_the_cpu_kernel_gives_its_log_sum_exp():
    query, key, value = torch.randn(3, 2, 3, 5, 8)
    output, lse = torch_private.flash_attention_cpu(query, key, value, None, False, None)
    scores = query @ key.mT * 8**-0.5
    torch.testing.assert_close(output, scores.softmax(-1) @ value)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_the_choice_is_a_backend():
    query = torch.randn(1, 2, 4, 8)
    choice = torch_private.fused_attention_choice(query, query, query, None, 0.0, False, None, False)
    assert choice in (SDPBackend.MATH.value, SDPBackend.FLASH_ATTENTION.value)


def test_a_change_in_place_is_counted():
    tensor = torch.zeros(3)
    before = torch_private.tensor_version(tensor)
    tensor += 1
    assert torch_private.tensor_version(tensor) > before
    with torch.inference_mode():
        assert torch_private.tensor_version(torch.zeros(3)) == 0


def test_hooks_of_a_module_are_listed():
    module = nn.Linear(2, 2)
    assert torch_private.forward_hooks(module) == []
    handles = [module.register_forward_hook(print), module.register_forward_pre_hook(repr)]
    assert torch_private.forward_hooks(module) == [print, repr]
    for handle in handles:
        handle.remove()
    assert torch_private.forward_hooks(module) == []


def test_a_compiled_module_gives_back_its_own():
    module = nn.Linear(2, 2)
    assert torch_private.uncompiled(module) is module
    assert torch_private.uncompiled(torch.compile(module)) is module


def test_many_tensors_at_once():
    targets, ends = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 4.0)]
    torch_private.lerp_each_(targets, ends, 0.25)
    assert [target.tolist() for target in targets] == [[0.25] * 2, [1.0] * 3]
    torch_private.copy_each_(targets, ends)
    assert all(map(torch.equal, targets, ends))
    assert torch_private.has_bf16_matrix_units() in (True, False)
