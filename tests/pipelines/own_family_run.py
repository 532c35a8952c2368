"""Run by test_register_family.py in a process of its own, beside an installed family that Toushi does not ship.

Samples with the example of docs/families.md and leaves in the working folder what the tests compare.
"""

import numpy as np
import torch

from toushi import Edit, edit, record

PROMPT, NEGATIVE = "左边是猫，右边是月亮 moon", "a dog"


def sample(pipeline, **arguments):
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipeline(PROMPT, NEGATIVE, num_inference_steps=2, generator=generator, **arguments).images[0])


def softmaxes(pipeline, **arguments):
    """Of each attention of the denoiser in its order of calls the probabilities [head, query, key] in float64."""
    probabilities = []

    def note(attention, given):
        states, smooth = given
        query, key, _ = attention.qkv(states).double().unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if smooth:
            query[:, :, :smooth] = query[:, :, :smooth].mean(2, keepdim=True)
        probabilities.append((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[0].numpy())

    hooks = [block.attention.register_forward_pre_hook(note) for block in pipeline.denoiser.blocks]
    sample(pipeline, **arguments)
    for hook in hooks:
        hook.remove()
    return probabilities


def main():
    from moonpaint.pipeline import MoonPipeline

    torch.manual_seed(0)
    pipeline = MoonPipeline()
    pictures = {"plain": sample(pipeline)}
    with record(pipeline, "run", sites="*", dtype="float32"):
        pictures["recorded"] = sample(pipeline)
    for name, change in {
        "of_a_word": Edit("denoiser.blocks.*", "zero", word="月亮"),
        "by_one": Edit("denoiser.blocks.*", "scale", word="月亮", factor=1.0),
        "of_a_state": Edit("text_encoder.layers.1", "zero", word="月亮"),
    }.items():
        with edit(pipeline, change), record(pipeline, name, dtype="float32"):
            pictures[name] = sample(pipeline)
    pictures["after"] = sample(pipeline)
    with record(pipeline, "perturbed", dtype="float32"):
        sample(pipeline, smooth_scale=2.0)
    np.savez("pictures.npz", **pictures)
    np.savez("softmaxes.npz", *softmaxes(pipeline))
    np.savez("softmaxes_perturbed.npz", *softmaxes(pipeline, smooth_scale=2.0))
    pipeline.save(".")


if __name__ == "__main__":
    main()
