"""A pipeline that is no row of the table: maps by the index of the key, where even that can be known exactly.

That is where attention to the text has keys of its own: then key i is column i of the text that the denoiser was given.
Which token a column is, nobody says. Where text and image share one sequence, their places are not known either, and
the pipeline is refused.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines import outputs as drawn
from toushi.probe.pipelines.attention_processors import readable
from toushi.probe.pipelines.family import (
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    Family,
    Site,
    UnknownFamily,
    named_modules,
    unwrapped,
)
from toushi.probe.pipelines.prompt_tokens import numbered

ROW = "add a row for it to probe/pipelines/table.py"


class ByTokenIndex(UserWarning):
    """The pipeline is no row of the family table: its maps are by the index of the key, not by word."""


def generic_family(pipeline) -> Family | None:
    """A family for this pipeline of diffusers alone; None if it is none. Raises UnknownFamily with the reason."""
    if not any(one.__name__ == "DiffusionPipeline" for one in type(pipeline).__mro__):
        return None
    kind = type(pipeline).__name__
    denoiser = next((name for name in ("transformer", "unet") if getattr(pipeline, name, None) is not None), None)
    if denoiser is None or not hasattr(pipeline, "encode_prompt") or getattr(pipeline, "scheduler", None) is None:
        raise UnknownFamily(
            f"cannot record a {kind}: it is no row of the family table, and without that a transformer or unet, a "
            f"scheduler and encode_prompt are needed; {ROW}"
        )
    parameters = list(inspect.signature(unwrapped(getattr(pipeline, denoiser)).forward).parameters)
    cross, joint = _attention(pipeline, denoiser)
    if joint or not cross or "encoder_hidden_states" not in parameters:
        where = f"{joint[0]} looks at text and image at once" if joint else f"no attention of its {denoiser} is to text"
        raise UnknownFamily(
            f"cannot record a {kind}: it is no row of the family table, and {where}, so that nobody knows which keys "
            f"are the text's; {ROW}"
        )
    return Family(
        name=f"{kind}, by token index",
        matches=lambda model: model is pipeline,
        encode_prompt="encode_prompt",
        sample="__call__",
        evaluate=None,
        scheduler="scheduler",
        denoiser=denoiser,
        denoiser_inputs=(parameters[0], "encoder_hidden_states"),
        cross_attention=tuple(cross),
        self_attention=(),
        branch_order=("uncond", "cond"),
        text_encoder="text_encoder",
        input_ids="input_ids",
        embeddings="",
        layers=None,
        layer_attention="",
        encoded_prompts=_texts,
        read_inputs=_scene(parameters[0]),
        step=drawn.step,
        timesteps=lambda scheduler: [*scheduler.timesteps.tolist(), 0.0],
        evaluation_step=None,
        cell_pixels=lambda model: getattr(model, "vae_scale_factor", 8),
        blank_latents=None,
        images=drawn.pictures,
        metadata=lambda model, arguments: drawn.about(model, arguments) | {"asked": arguments.get("prompt")},
        check=_check(kind),
        timesteps_method="get_timesteps",
        step_index=drawn.place,
        unrecorded={"*": "not a row of the family table: attention to the text alone is recorded, nothing else"},
    )


def _attention(pipeline, denoiser: str) -> tuple[list[str], list[str]]:
    """The denoiser's attention to text with keys of its own, and that in which other keys are added to them."""
    cross, joint = [], []
    for name, module in named_modules(pipeline):
        if name.startswith(f"{denoiser}.") and getattr(module, "processor", None) is not None:
            if getattr(module, "added_kv_proj_dim", None) is not None:
                joint.append(name)
            elif getattr(module, "is_cross_attention", False):
                cross.append(name)
    return cross, joint


def _check(kind: str):
    check = readable()

    def warned(pipeline, sites: Mapping[str, Site]) -> None:
        check(pipeline, sites)
        warnings.warn(
            ByTokenIndex(
                f"{kind} is no row of the family table. Its maps are by the index of the key, #0, #1, …: which token "
                "of the prompt that is, is not known, nor which of them are template, special or padding, nor whether "
                f"the model mixed the text before it looked at it. To have words, {ROW}."
            ),
            stacklevel=3,
        )

    return warned


def _scene(latents: str):
    def scene(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
        image, text = inputs[latents], inputs["encoder_hidden_states"]
        if not isinstance(image, Tensor) or image.dim() != 4 or not isinstance(text, Tensor) or text.dim() != 3:
            raise ToushiError(
                f"cannot record a {type(pipeline).__name__}: expected latents [row, channel, y, x] and a text [row, "
                f"column, feature], but {_shape(image)} and {_shape(text)} came, whose grid is not known; {ROW}"
            )
        return DenoiserInputs(
            (image.shape[-2], image.shape[-1]), (text,), lambda: list(text.unbind()), keys=text.shape[1]
        )

    return scene


def _shape(value) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _texts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """What `encode_prompt` returns, for each branch: it has to be certain which of the texts is the prompt's."""
    found = list(_states(call.result))
    known = inspect.signature(type(call.model).encode_prompt).parameters
    if "negative_prompt" not in known and len(found) == 1:  # called once for each of them
        asked = {
            name: call.sample_arguments.get(name, call.arguments.get("prompt"))
            for name in ("prompt", "negative_prompt")
        }
        branches = [name for name, given in asked.items() if given == call.arguments.get("prompt")]
        first = "cond" in call.earlier and len(branches) > 1
        names = ["uncond" if first or branches == ["negative_prompt"] else "cond"] if branches else []
    else:
        names = ["cond", "uncond"][: len(found)]
    if not names or len(found) > 2 or (len(found) == 2 and not _prompt_comes_first(call, found[0])):
        raise ToushiError(
            f"cannot record a {type(call.model).__name__}: encode_prompt returned {len(found)} texts, and which of "
            f"them is the prompt's cannot be told; {ROW}"
        )
    return {
        branch: [EncodedPrompt(None, (), tuple(numbered(0, len(row), 1)), row) for row in states]
        for branch, states in zip(names, found)
    }


def _states(result) -> Iterator[Tensor]:
    """The texts [row, column, feature] among what was returned."""
    for one in result if isinstance(result, tuple | list) else [result]:
        if isinstance(one, Tensor) and one.dim() == 3 and one.is_floating_point():
            yield one


def _prompt_comes_first(call: EncodePromptCall, first: Tensor) -> bool:
    """Whether the prompt encoded without guidance, alone, gives the first text."""
    encode_prompt = type(call.model).encode_prompt
    if "do_classifier_free_guidance" not in inspect.signature(encode_prompt).parameters:
        return False
    with torch.random.fork_rng(), torch.no_grad():
        alone = encode_prompt(call.model, **{**call.arguments, "do_classifier_free_guidance": False})
    again = next(_states(alone), None)
    return again is not None and again.shape == first.shape and torch.equal(again, first)
