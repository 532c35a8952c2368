"""Quantised checkpoints as people run them on small cards are recorded like any other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipelines.tiny import draw, made
from toushi import open_trace, record


def replace_linears(module: nn.Module, multiple: int, make: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.in_features % multiple == 0:
            setattr(module, name, make(child))
        else:
            replace_linears(child, multiple, make)


def fp8_storage(transformer: nn.Module) -> None:
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def bitsandbytes_nf4(transformer: nn.Module) -> None:
    nf4 = pytest.importorskip("bitsandbytes").nn.Linear4bit

    def make(linear: nn.Linear) -> nn.Module:
        quantized = nf4(linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4")
        quantized.load_state_dict(linear.state_dict())
        return quantized.to("cpu")

    replace_linears(transformer, 2, make)


def torchao_int8(transformer: nn.Module) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig())


def gguf_q8(transformer: nn.Module) -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    def make(linear: nn.Linear) -> nn.Module:
        kind = gguf.GGMLQuantizationType.Q8_0
        quantized = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
        weight = torch.from_numpy(gguf.quants.quantize(linear.weight.detach().numpy(), kind))
        quantized.weight, quantized.bias = GGUFParameter(weight, quant_type=kind), linear.bias
        return quantized

    replace_linears(transformer, 32, make)


def device_map(transformer: nn.Module) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.dispatch_model(transformer, {"": "cpu"}, force_hooks=True)


@pytest.mark.parametrize("quantize", [fp8_storage, bitsandbytes_nf4, torchao_int8, gguf_q8, device_map])
def test_it_is_recorded_and_the_picture_is_the_same(tmp_path, quantize):
    exact = np.asarray(draw(made("flux")))
    pipeline = made("flux")
    quantize(pipeline.transformer)
    picture = np.asarray(draw(pipeline))
    assert quantize is device_map or not np.array_equal(picture, exact)
    with record(pipeline, tmp_path / "run"):
        assert np.array_equal(np.asarray(draw(pipeline)), picture)
    assert open_trace(tmp_path / "run").verify() == []
