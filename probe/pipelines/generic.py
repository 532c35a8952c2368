"""The family of a diffusers pipeline that no known family serves: maps by the index of the key, where that is exact.

It is exact if attention to the text has keys of its own: then key i is column i of the text that the denoiser got. The
token of a column is not known. If text and image share one sequence, their places in it are not known either, and the
pipeline is refused.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    Family,
    Model,
    Site,
    UnknownFamily,
    named_modules,
    submodule,
    unwrap,
)
from toushi.probe.pipelines.prompt_tokens import numbered_tokens
from toushi.probe.pipelines.text_follower import TextFollower

REGISTER = "write a Family for it and register it (docs/families.md)"
REFUSED = {  # pipeline class -> why its attention to the prompt cannot be read
    "GlmImagePipeline": "a language model makes image tokens of the prompt before the denoiser runs, and the denoiser "
    "attends to no words but those in quotation marks",
    "QwenImage21Pipeline": "its denoiser attends in several calls, and after the first step only the image has queries",
    "QwenImageLayeredPipeline": "it makes several layers of a picture at once",
}


class ByTokenIndex(UserWarning):
    """No family serves the pipeline: its maps are by the index of the key, not by word."""


def generic_family(pipeline: Model) -> Family | None:
    """A family for this one pipeline. None if it is no pipeline of diffusers. Raises UnknownFamily with the reason if it
    cannot be recorded."""
    if not any(kind.__name__ == "DiffusionPipeline" for kind in type(pipeline).__mro__):
        return None
    kind = type(pipeline).__name__
    refuse_class(type(pipeline))
    denoiser = next((name for name in ("transformer", "unet") if getattr(pipeline, name, None) is not None), None)
    if denoiser is None or getattr(pipeline, "scheduler", None) is None:
        raise UnknownFamily(
            f"cannot record a {kind}: no family serves it, and without one a pipeline needs a transformer or unet, and a "
            f"scheduler; {REGISTER}"
        )
    parameters = list(inspect.signature(unwrap(getattr(pipeline, denoiser)).forward).parameters)
    cross, joint = _text_attention(pipeline, denoiser)
    texts = [name for name in parameters if name.startswith("encoder_hidden_states") and "mask" not in name]
    if joint or not cross or texts != ["encoder_hidden_states"]:
        where = f"no attention of its {denoiser} says that its keys are another sequence (is_cross_attention)"
        if joint:
            where = f"{joint[0]} attends to text and image at once"
        elif cross:
            came = ", ".join(texts) or "none"
            where = f"the forward of its {denoiser} should have one text, encoder_hidden_states, but it has {came}"
        raise UnknownFamily(
            f"cannot record a {kind}: no family serves it, and {where}, so it is not known which keys are the text's; "
            f"{REGISTER}"
        )
    follower = TextFollower()

    def hooks(model: Model) -> AbstractContextManager[None]:
        return follower.hooks(submodule(model, denoiser), {name: submodule(model, name) for name in cross})

    return diffusers_family(
        f"{kind}, by token index",
        matches=lambda model: model is pipeline,
        denoiser=denoiser,
        denoiser_inputs=(parameters[0], "encoder_hidden_states"),
        read_inputs=_read_inputs(parameters[0], follower),
        hooks=hooks,
        branches=("cond", "uncond", "perturbed"),
        cross_attention=tuple(cross),
        cell_pixels=lambda model: getattr(model, "vae_scale_factor", 8),
        encoded_prompts=_encoded_prompts,
        text_encoders=(),
        check=_check(kind),
        unrecorded_attention={"*": "no family serves this pipeline: only attention to the text alone is recorded"},
    )


def refuse_class(kind: type) -> None:
    """Raises UnknownFamily, with the reason, for a pipeline class without a family that cannot be recorded whatever its
    weights are."""
    reason = next((REFUSED[each.__name__] for each in kind.__mro__ if each.__name__ in REFUSED), None)
    parameters = inspect.signature(kind.__call__).parameters
    if reason is None and not hasattr(kind, "encode_prompt"):
        reason = "without one a pipeline needs a method encode_prompt"
    elif reason is None and any("video" in name or "frames" in name for name in parameters):
        reason = "it makes videos, whose latents have frames"
    if reason is not None:
        raise UnknownFamily(f"cannot record a {kind.__name__}: no family serves it, and {reason}; {REGISTER}")


def _text_attention(pipeline: Model, denoiser: str) -> tuple[list[str], list[str]]:
    """Names of the denoiser's attention whose keys are the text alone, and of that whose keys are text and image."""
    cross, joint = [], []
    for name, module in named_modules(pipeline):
        if name.startswith(f"{denoiser}.") and getattr(module, "processor", None) is not None:
            if getattr(module, "added_kv_proj_dim", None) is not None:
                joint.append(name)
            elif getattr(module, "is_cross_attention", False):
                cross.append(name)
    return cross, joint


def _check(kind: str) -> Callable[[object, Mapping[str, Site]], None]:
    require_sdpa = require_sdpa_processors()

    def check(pipeline: object, sites: Mapping[str, Site]) -> None:
        require_sdpa(pipeline, sites)
        warnings.warn(
            ByTokenIndex(
                f"no family serves {kind}. Its maps are by the index of the key: #0, #1, … It is not known which token a "
                "key is, which are template, special or padding, and whether the text attended to itself before. To "
                f"have words, {REGISTER}."
            ),
            stacklevel=3,
        )

    return check


def _read_inputs(latents: str, follower: TextFollower) -> Callable[[object, Arguments], DenoiserInputs]:
    def read_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
        image, text = inputs[latents], inputs["encoder_hidden_states"]
        if not isinstance(image, Tensor) or image.dim() != 4 or not isinstance(text, Tensor) or text.dim() != 3:
            raise ToushiError(
                f"cannot record a {type(pipeline).__name__}: expected latents [row, channel, y, x] and a text [row, "
                f"column, feature], but {_shape(image)} and {_shape(text)} came, whose grid is not known; {REGISTER}"
            )
        follower.begin(text)
        grid, branches = (image.shape[-2], image.shape[-1]), None
        if is_perturbed(pipeline):
            guided = getattr(pipeline, "do_classifier_free_guidance", None)
            if guided is None:  # both evaluations of a prompt get the same text
                guided = bool(len(text) % 2) or not torch.equal(*text.chunk(2))
            order = [*["uncond"] * guided, "cond", "perturbed"]
            branches = tuple(branch for branch in order for _ in range(len(text) // len(order)))
        return DenoiserInputs(
            grid,
            (text,),
            lambda: list(text.unbind()),
            key_count=text.shape[1],
            text_sites=follower.sites,
            branches=branches,
        )

    return read_inputs


def is_perturbed(pipeline: object) -> bool:
    """Whether the pipeline evaluates each prompt a second time, with perturbed self-attention (PAG)."""
    return bool(getattr(pipeline, "do_perturbed_attention_guidance", False))


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """The texts that `encode_prompt` returned, by branch. Raises ToushiError if it is not certain which is the prompt's."""
    texts = list(_texts(call.result))
    parameters = inspect.signature(type(call.model).encode_prompt).parameters
    if "negative_prompt" not in parameters and len(texts) == 1:  # called once for each branch
        prompt = next(iter(call.arguments.values()), None)  # whatever the parameter is called
        prompts = {
            branch: call.sample_arguments.get(name, prompt if not call.sample_arguments else None)
            for branch, name in (("cond", "prompt"), ("uncond", "negative_prompt"))
        }
        same = [branch for branch, text in prompts.items() if text == prompt and text is not None]
        branches = same[1:] if len(same) > 1 and "cond" in call.earlier else same[:1]
    else:
        branches = ["cond", "uncond"][: len(texts)]
    if not branches or len(texts) > 2 or (len(texts) == 2 and not _prompt_comes_first(call, texts[0])):
        raise ToushiError(
            f"cannot record a {type(call.model).__name__}: encode_prompt returned {len(texts)} texts, and it is not "
            f"certain which of them is the prompt's; {REGISTER}"
        )
    encoded = {
        branch: [EncodedPrompt(None, (), tuple(numbered_tokens(len(row))), row) for row in text]
        for branch, text in zip(branches, texts)
    }
    if call.sample_arguments and is_perturbed(call.model) and "cond" in encoded:
        encoded["perturbed"] = encoded["cond"]
    return encoded


def _texts(result: object) -> Iterator[Tensor]:
    """The texts [row, column, feature] in what was returned."""
    for value in result if isinstance(result, tuple | list) else [result]:
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            yield value


def _prompt_comes_first(call: EncodePromptCall, first: Tensor) -> bool:
    """Whether the prompt, encoded alone and without guidance, gives the first text."""
    encode_prompt = type(call.model).encode_prompt
    if "do_classifier_free_guidance" not in inspect.signature(encode_prompt).parameters:
        return False
    with torch.random.fork_rng(), torch.no_grad():
        result = encode_prompt(call.model, **{**call.arguments, "do_classifier_free_guidance": False})
    again = next(_texts(result), None)
    return again is not None and again.shape == first.shape and torch.equal(again, first)
