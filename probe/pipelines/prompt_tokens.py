"""What was call: the texts that a pipeline encodes, with a token for each column that its denoiser sees.

Which prompt a text belongs to is known from the ids that the text encoders really were given.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, PromptTokens
from toushi.probe.text.alignment import Token
from toushi.probe.text.spelling import Misspelled, Vocabulary, spelled_out

BLOCK = 32  # Z-Image fills image and caption to a multiple of it, and attends to the filling
SENTINEL = "toushi7prompt"


class UnspelledPrompt(UserWarning):
    """The tokens that were encoded do not spell the prompt, so that they have no place in it."""


@dataclass(frozen=True)
class Part:
    """A stretch of the denoiser's text columns, and the encoder that it comes from.

    encoders   of those that there are the first one's ids label the columns (SDXL joins two states in each)
    prompts    the arguments of `encode_prompt` that may carry its prompt; the first that is given counts
    chosen     positions, of so many, that become columns, in this order
    kept       which of these really do: "all", or "real", those that the encoder's mask keeps
    template   what the pipeline puts before and after the prompt, and before and after the negative one
    """

    encoders: tuple[str, ...] = ("text_encoder",)
    prompts: tuple[str, ...] = ("prompt",)
    chosen: Callable[[EncodePromptCall, int], Sequence[int]] = lambda call, count: range(count)
    kept: str = "all"
    template: Callable[[EncodePromptCall, bool], tuple[str, str]] = lambda call, negative: ("", "")


def encoded(
    call: EncodePromptCall,
    parts: Sequence[Part],
    states: Sequence[Tensor] | None,
    run: int | None,
    negative: bool = False,
    block: int = 1,
) -> list[EncodedPrompt]:
    """The texts of one branch, one for each picture. `states` are their real columns [column, feature].

    `run` says which run of the encoders was theirs; None if they were not run for them: then nothing is known but
    the states, and the tokens are numbers. Columns are filled up to a multiple of `block`.
    """
    if states is None:
        return []
    first = call.encoder_runs.get(parts[0].encoders[0], ())
    count = len(first[run].ids) if run is not None and run < len(first) else 0
    if not count or len(states) % count:
        return [EncodedPrompt(None, (), tuple(numbered(0, len(one), block)), one) for one in states]
    texts = []
    for prompt in range(count):
        text, ids, tokens = _one(call, parts, run or 0, prompt, count, negative)
        for one in states[prompt * (len(states) // count) : (prompt + 1) * (len(states) // count)]:
            known = [token if (token.column or 0) < len(one) else replace(token, column=None) for token in tokens]
            width = sum(token.column is not None for token in known)
            # Columns beyond the tokens are filling, which some models attend to.
            texts.append(EncodedPrompt(text, ids, (*known, *numbered(width, width, block, at_least=len(one))), one))
    return texts


def _one(call: EncodePromptCall, parts: Sequence[Part], run: int, number: int, count: int, negative: bool):
    """Prompt, ids of the first encoder without padding, and tokens of one prompt."""
    tokens: list[Token] = []
    prompt, first_ids, width = None, None, 0
    for part in parts:
        name = next((name for name in part.encoders if len(call.encoder_runs.get(name, ())) > run), None)
        if name is None:
            continue
        names = [f"negative_{name}" if negative else name for name in part.prompts]
        given = next((call.arguments[name] for name in names if call.arguments.get(name) is not None), None)
        text = _of_number(given, number, count)
        prompt = text if prompt is None else prompt
        read = call.encoder_runs[name][run]
        ids, mask = read.ids[number], None if read.mask is None else read.mask[number]
        chosen = [i for i in part.chosen(call, len(ids)) if part.kept == "all" or mask is None or mask[i]]
        columns: list[int | None] = [None] * len(ids)
        for column, position in enumerate(chosen, start=width):
            columns[position] = column
        encoders = tuple(name for name in part.encoders if getattr(call.model, name, None) is not None)
        vocabulary = Vocabulary.of(getattr(call.model, name.replace("text_encoder", "tokenizer")))
        found = _spelled(vocabulary, ids, mask, prompt, text, columns, encoders, part.template(call, negative))
        tokens += [token for token in found if token.kind != "pad" or token.column is not None]
        if first_ids is None:
            first_ids = tuple(token.id for token in found if token.kind != "pad")
        width += sum(column is not None for column in columns)
    return prompt, first_ids or (), tokens


def _spelled(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str | None,
    text: str | None,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
) -> list[Token]:
    """The tokens with their places in `prompt`; without, if the encoder was given another `text`."""
    try:
        tokens, cut = spelled_out(vocabulary, ids, mask, text or "", columns, encoders, template)
    except Misspelled as error:
        warnings.warn(
            UnspelledPrompt(
                f"the ids that {encoders[0]} was given do not spell the prompt {text!r:.60}: {error}. Its maps are by "
                "token only, not by word (a pipeline may have cleaned or replaced the text)."
            ),
            stacklevel=2,
        )
        tokens = [
            Token(id, vocabulary.piece(id), None, kind, encoders, index, column)
            for index, (id, kind, column) in enumerate(zip(ids, vocabulary.kinds(ids, mask), columns))
        ]
        return tokens
    if cut is not None:
        warnings.warn(
            PromptCut(f"the prompt is longer than {encoders[0]} reads; cut: {(text or '')[cut:]}"), stacklevel=2
        )
    if text != prompt:
        tokens = [replace(token, span=None) for token in tokens]
    return tokens


def _of_number(given: Any, number: int, count: int) -> str:
    """The prompt of this number, of one or a list of them; none is an empty one."""
    if given is None or isinstance(given, str):
        return given or ""
    return given[number] if len(given) == count else given[0]


def numbered(start: int, end: int, block: int, at_least: int = 0) -> list[Token]:
    """Tokens of which nothing is known but the column; beyond `end`, up to a multiple of `block`, filling."""
    last = -(-max(end, at_least) // block) * block
    return [
        Token(None, f"#{column}" if column < end else "", None, "text" if column < end else "pad", (), column, column)  # pyright: ignore[reportArgumentType]
        for column in range(start, max(start, last))
    ]


def in_one_call(
    parts: Sequence[Part], states_of: Callable[[EncodePromptCall], tuple], block: int = 1
) -> dict[str, Any]:
    """Fields of a family whose `encode_prompt` gives both branches: `encoded_prompts` and `tokens_of_run`.

    `states_of` gives the states of the prompts and of the negative prompts, None where there are none.
    """

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        positive, negative = states_of(call)
        own = call.arguments.get("prompt_embeds") is None
        found = {"cond": encoded(call, parts, positive, 0 if own else None, block=block)}
        if negative is not None and len(negative):
            run = (1 if own else 0) if call.arguments.get("negative_prompt_embeds") is None else None
            found["uncond"] = encoded(call, parts, negative, run, negative=True, block=block)
        return found

    def tokens_of_run(call: EncodePromptCall, run: int) -> tuple[str, list[PromptTokens]]:
        negative = run > 0 or call.arguments.get("prompt_embeds") is not None
        return "uncond" if negative else "cond", tokens_of_rows(call, parts, run, negative)

    return {"encoded_prompts": encoded_prompts, "tokens_of_run": tokens_of_run}


def in_two_calls(parts: Sequence[Part], states_of: Callable[[EncodePromptCall], Sequence[Tensor]]) -> dict[str, Any]:
    """Fields of a family that calls `encode_prompt` for the prompt, then for the negative one."""

    def branch_of(call: EncodePromptCall) -> str:
        return "uncond" if "cond" in call.earlier else "cond"

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        own = call.arguments.get("prompt_embeds") is None
        return {branch_of(call): encoded(call, parts, states_of(call), 0 if own else None)}

    def tokens_of_run(call: EncodePromptCall, run: int) -> tuple[str, list[PromptTokens]]:
        return branch_of(call), tokens_of_rows(call, parts, run, negative=False)

    return {"encoded_prompts": encoded_prompts, "tokens_of_run": tokens_of_run}


def tokens_of_rows(call: EncodePromptCall, parts: Sequence[Part], run: int, negative: bool) -> list[PromptTokens]:
    """Prompt and tokens of each row of one run of the first encoder, before it has run."""
    count = len(call.encoder_runs[parts[0].encoders[0]][run].ids)
    return [PromptTokens(*_one(call, parts, run, number, count, negative)) for number in range(count)]


def unbound(call: EncodePromptCall) -> tuple:
    positive, negative = call.result[:2]
    return positive.unbind(), None if negative is None else negative.unbind()


def masked(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The real columns of each row, which come first in it."""
    if mask is None:
        return list(states.unbind())
    lengths = mask.long().sum(1).tolist()
    if not all(bool(row[:length].all()) for row, length in zip(mask, lengths)):
        raise ToushiError("a text has padding before its tokens, where the model has it behind: set padding_side=right")
    return [row[:length] for row, length in zip(states, lengths)]


# --- states of each branch, as the families return them ---


def with_masks(call: EncodePromptCall) -> tuple:
    """Of (prompt, its mask, negative prompt, its mask)."""
    positive, mask, negative, negative_mask = call.result
    return masked(positive, mask), None if negative is None else masked(negative, negative_mask)


FIRST = in_one_call([Part()], unbound)  # BERT
SECOND = in_one_call([Part(("text_encoder_2",))], unbound)  # T5


def hunyuan(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """`encode_prompt` is called for BERT, then for T5, whose columns come behind."""
    if call.arguments.get("text_encoder_index", 0) == 0:
        return FIRST["encoded_prompts"](call)
    found = SECOND["encoded_prompts"](call)
    return {
        branch: [joined_texts(*pair) for pair in zip(call.earlier[branch], some)] if branch in call.earlier else some
        for branch, some in found.items()
    }


def joined_texts(one: EncodedPrompt, other: EncodedPrompt) -> EncodedPrompt:
    """The columns of one text and then those of the other."""
    width = sum(token.column is not None for token in one.tokens)
    behind = [token if token.column is None else replace(token, column=token.column + width) for token in other.tokens]
    return EncodedPrompt(one.prompt, one.ids, (*one.tokens, *behind), joined(one.states, other.states))


def joined(one: Tensor, other: Tensor) -> Tensor:
    """States [column, feature] of two encoders, one after the other, the narrower ones filled up with zeros."""
    width = max(one.shape[-1], other.shape[-1])
    return torch.cat([F.pad(states, (0, width - states.shape[-1])) for states in (one, other.to(one))])


def z_image_states(call: EncodePromptCall) -> tuple:
    """`encode_prompt` gives each prompt once; the pipeline repeats it for each of its pictures."""
    count = call.sample_arguments.get("num_images_per_prompt") or 1
    positive, negative = ([one for one in some for _ in range(count)] for some in call.result)
    return positive, negative


def z_image_given(arguments: Mapping[str, Any]) -> dict[str, list[EncodedPrompt]]:
    """Ready-made embeddings go past `encode_prompt`."""
    count = arguments.get("num_images_per_prompt") or 1
    found = {"cond": arguments.get("prompt_embeds"), "uncond": arguments.get("negative_prompt_embeds")}
    return {
        branch: [
            EncodedPrompt(None, (), tuple(numbered(0, len(one), BLOCK)), one) for one in some for _ in range(count)
        ]
        for branch, some in found.items()
        if some
    }


# --- templates ---


def chat_template(thinking: bool) -> Callable[[EncodePromptCall, bool], tuple[str, str]]:
    """What Qwen3's template puts around a user's words."""

    def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
        message = [{"role": "user", "content": SENTINEL}]
        return _around(
            call.model.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        )

    return template


def mistral_template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """FLUX.2's system message, and the user's words."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", call.model.system_message), ("user", SENTINEL))
    ]
    return _around(call.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))


def sana_template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """Instructions for a person, given to the encoder with the prompt alone."""
    instruction = call.arguments.get("complex_human_instruction")
    return ("\n".join(instruction) if instruction and not negative else "", "")


def sana_chosen(call: EncodePromptCall, count: int) -> list[int]:
    """The first, and so many of the last that there are `max_sequence_length`."""
    length = call.arguments.get("max_sequence_length", 300)
    return [0, *range(count - length + 1, count)]


def lumina_template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    system = call.arguments.get("system_prompt")
    system = call.model.system_prompt if system is None else system
    return ("" if negative else f"{system} <Prompt Start> ", "")


def _around(filled: str) -> tuple[str, str]:
    before, _, after = filled.partition(SENTINEL)
    return before, after


def qwen_image_template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    return _around(call.model.prompt_template_encode.format(SENTINEL))
