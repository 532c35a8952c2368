"""What the tests of recording share: prompts, a run and its trace, attention computed another way."""

import numpy as np
import torch
import torch.nn.functional as F

from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

SDPA = F.scaled_dot_product_attention
PROMPT = "左边是猫，右边是月亮，夜晚"
LONG = "左边是猫头鹰，右边是月亮，" * 12


def draw(model, prompt=PROMPT, *, steps=3, **named):
    return model.sample(prompt, steps=steps, **named)


def recorded(model, folder, prompt=PROMPT, *, steps=3, keeping=None, **named):
    with record(model, folder, **(keeping or {})):
        picture = draw(model, prompt, steps=steps, **named)
    return picture, open_trace(folder)


def same(one, two):
    return np.array_equal(one, two, equal_nan=True)  # NaN where a site has fewer heads than another


def explicit(model, branch_text, latents, time, site):
    """Attention of one site from its own weights, in fp64: [head, token, cell]."""
    kept = {}
    module = model.get_submodule(site)

    def hook(module, arguments):
        kept["x"], (kept["k"], _), kept["mask"] = arguments

    handle = module.register_forward_pre_hook(hook)
    model.denoise(latents, time, branch_text)
    handle.remove()
    q = module.to_q(kept["x"]).unflatten(-1, (module.heads, -1)).transpose(1, 2).double()
    scores = q @ kept["k"].double().mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~kept["mask"], -torch.inf).softmax(-1).mT[0]
