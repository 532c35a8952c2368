"""Prompts with a token for each text column of the denoiser.

A family describes its text as `PromptPart`s and says where the call of `encode_prompt` returns the states. Everything
else is here: which prompt a row has, which ids the text encoders were really given, what these ids spell.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, PromptTokens
from toushi.probe.text.alignment import Token
from toushi.probe.text.spelling import SpellingError, Vocabulary, align_tokens

PROMPT_MARK = "toushi7prompt"  # stands for the prompt when a chat template is filled in


class UnspelledPrompt(UserWarning):
    """The tokens that were encoded do not spell the prompt, so they have no place in it."""


@dataclass(frozen=True)
class PromptPart:
    """A stretch of the denoiser's text columns that come from one text encoder, or from several side by side.

    encoders          components whose states are joined feature by feature in these columns (SDXL has two). The ids
                      of the first one that was run label the columns
    prompt_arguments  arguments of `encode_prompt` that may carry the prompt; the first one that was given counts. The
                      negative prompt's are called the same, with `negative_` before
    column_positions  (call, number of positions) -> the encoder's positions that become columns, in this order
    real_only         whether padding, as the encoder's mask tells it, becomes no column
    template          (call, whether it is the negative prompt) -> what the pipeline puts before and after the prompt
    """

    encoders: tuple[str, ...] = ("text_encoder",)
    prompt_arguments: tuple[str, ...] = ("prompt",)
    column_positions: Callable[[EncodePromptCall, int], Sequence[int]] = lambda call, count: range(count)
    real_only: bool = False
    template: Callable[[EncodePromptCall, bool], tuple[str, str]] = lambda call, negative: ("", "")


BranchStates = tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]  # of the prompts, of the negative prompts


def prompts_in_one_call(
    parts: Sequence[PromptPart], states_of: Callable[[EncodePromptCall], BranchStates], block: int = 1
) -> dict[str, Any]:
    """Fields of a family whose `encode_prompt` encodes both branches: `encoded_prompts` and `tokens_of_run`.

    `states_of` gives the states [column, feature] of the prompts and of the negative prompts, without padding; None
    for a branch that there is not. The denoiser pads the columns to a multiple of `block`, and attends to the padding.
    """

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        positive, negative = states_of(call)
        ran = call.arguments.get("prompt_embeds") is None
        prompts = {"cond": label_prompts(call, parts, positive, 0 if ran else None, block=block)}
        if negative is not None and len(negative):
            run = (1 if ran else 0) if call.arguments.get("negative_prompt_embeds") is None else None
            prompts["uncond"] = label_prompts(call, parts, negative, run, negative=True, block=block)
        return prompts

    def tokens_of_run(call: EncodePromptCall, run: int) -> tuple[str, list[PromptTokens]]:
        negative = run > 0 or call.arguments.get("prompt_embeds") is not None
        return "uncond" if negative else "cond", tokens_of_rows(call, parts, run, negative)

    return {"encoded_prompts": encoded_prompts, "tokens_of_run": tokens_of_run}


def prompts_in_two_calls(
    parts: Sequence[PromptPart], states_of: Callable[[EncodePromptCall], Sequence[Tensor]]
) -> dict[str, Any]:
    """Fields of a family that calls `encode_prompt` for the prompts, and then for the negative prompts."""

    def branch_of(call: EncodePromptCall) -> str:
        return "uncond" if "cond" in call.earlier else "cond"

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        ran = call.arguments.get("prompt_embeds") is None
        return {branch_of(call): label_prompts(call, parts, states_of(call), 0 if ran else None)}

    def tokens_of_run(call: EncodePromptCall, run: int) -> tuple[str, list[PromptTokens]]:
        return branch_of(call), tokens_of_rows(call, parts, run, negative=False)

    return {"encoded_prompts": encoded_prompts, "tokens_of_run": tokens_of_run}


# --- labels ---


def label_prompts(
    call: EncodePromptCall,
    parts: Sequence[PromptPart],
    states: Sequence[Tensor] | None,
    run: int | None,
    negative: bool = False,
    block: int = 1,
) -> list[EncodedPrompt]:
    """The prompts of one branch, one for each picture, with `states` [column, feature] without padding.

    `run` is the number of the text encoders' run that made them; None if they came as embeddings: then nothing is
    known but the states, and the tokens are numbers.
    """
    if states is None:
        return []
    runs = call.encoder_runs.get(parts[0].encoders[0], ())
    rows = len(runs[run].ids) if run is not None and run < len(runs) else 0
    if not rows or len(states) % rows:
        return [EncodedPrompt(None, (), tuple(numbered_tokens(len(columns), block)), columns) for columns in states]
    prompts, pictures = [], len(states) // rows
    for row in range(rows):
        prompt, ids, tokens = _read_row(call, parts, run or 0, row, rows, negative)
        for columns in states[row * pictures : (row + 1) * pictures]:
            reached = [t if (t.column or 0) < len(columns) else replace(t, column=None) for t in tokens]
            width = sum(token.column is not None for token in reached)
            padding = padding_tokens(width, round_up(max(width, len(columns)), block))
            prompts.append(EncodedPrompt(prompt, ids, (*reached, *padding), columns))
    return prompts


def tokens_of_rows(call: EncodePromptCall, parts: Sequence[PromptPart], run: int, negative: bool) -> list[PromptTokens]:
    """Prompt and tokens of each row of one run of the first encoder, before it has run."""
    rows = len(call.encoder_runs[parts[0].encoders[0]][run].ids)
    return [_read_row(call, parts, run, row, rows, negative) for row in range(rows)]


def _read_row(
    call: EncodePromptCall, parts: Sequence[PromptPart], run: int, row: int, rows: int, negative: bool
) -> PromptTokens:
    """The prompt of one row of `rows`, the ids of its first encoder, and the tokens of all its parts."""
    tokens: list[Token] = []
    first_prompt, first_ids, width = None, None, 0
    for part in parts:
        encoder = next((name for name in part.encoders if len(call.encoder_runs.get(name, ())) > run), None)
        if encoder is None:
            continue
        names = [f"negative_{name}" if negative else name for name in part.prompt_arguments]
        given = next((call.arguments[name] for name in names if call.arguments.get(name) is not None), None)
        prompt = _prompt_of_row(given, row, rows)
        first_prompt = prompt if first_prompt is None else first_prompt
        inputs = call.encoder_runs[encoder][run]
        ids, mask = inputs.ids[row], None if inputs.mask is None else inputs.mask[row]
        positions = [i for i in part.column_positions(call, len(ids)) if not part.real_only or mask is None or mask[i]]
        columns: list[int | None] = [None] * len(ids)
        for column, position in enumerate(positions, start=width):
            columns[position] = column
        encoders = tuple(name for name in part.encoders if getattr(call.model, name, None) is not None)
        vocabulary = Vocabulary.from_tokenizer(getattr(call.model, encoder.replace("text_encoder", "tokenizer")))
        spelled = _spell(vocabulary, ids, mask, prompt, columns, encoders, part.template(call, negative))
        if prompt != first_prompt:  # spans count in the first prompt
            spelled = [replace(token, span=None) for token in spelled]
        tokens += [token for token in spelled if token.kind != "pad" or token.column is not None]
        if first_ids is None:
            first_ids = tuple(token.id for token in spelled if token.kind != "pad")
        width += sum(column is not None for column in columns)
    return PromptTokens(first_prompt, first_ids or (), tuple(tokens))


def _spell(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
) -> list[Token]:
    """The tokens of these ids, with their spans in the prompt. Warns if the prompt was cut, or is not what they spell."""
    try:
        tokens, cut = align_tokens(vocabulary, ids, mask, prompt, columns, encoders, template)
    except SpellingError as error:
        warnings.warn(
            UnspelledPrompt(
                f"the ids that {encoders[0]} was given do not spell the prompt {prompt!r:.60}: {error}. Its maps are "
                "by token only, not by word (a pipeline may have cleaned or replaced the text)."
            ),
            stacklevel=2,
        )
        return [
            Token(id, vocabulary.piece(id), None, kind, encoders, index, column)
            for index, (id, kind, column) in enumerate(zip(ids, vocabulary.kinds(ids, mask), columns))
        ]
    if cut is not None:
        warnings.warn(PromptCut(f"the prompt is longer than {encoders[0]} reads; cut: {prompt[cut:]}"), stacklevel=2)
    return tokens


def _prompt_of_row(given: Any, row: int, rows: int) -> str:
    """The prompt of one row, from what the argument holds: one prompt, a list of them, or None for an empty one."""
    if given is None or isinstance(given, str):
        return given or ""
    return given[row] if len(given) == rows else given[0]


def numbered_tokens(count: int, block: int = 1) -> list[Token]:
    """Tokens #0, #1, … of columns whose ids are not known, and padding up to a multiple of `block`."""
    numbered = [Token(None, f"#{column}", None, "text", (), column, column) for column in range(count)]  # pyright: ignore[reportArgumentType]
    return numbered + padding_tokens(count, round_up(count, block))


def padding_tokens(start: int, end: int) -> list[Token]:
    """Tokens of columns that no text encoder made, and that the denoiser attends to nevertheless."""
    return [Token(None, "", None, "pad", (), column, column) for column in range(start, end)]  # pyright: ignore[reportArgumentType]


def round_up(count: int, block: int) -> int:
    """The next multiple of `block`."""
    return -(-count // block) * block


# --- states, as `encode_prompt` returns them ---


def unmasked_states(call: EncodePromptCall) -> BranchStates:
    """Of (prompt_embeds, negative_prompt_embeds, …), where every column is attended to."""
    positive, negative = call.result[:2]
    return positive.unbind(), None if negative is None else negative.unbind()


def masked_states(call: EncodePromptCall) -> BranchStates:
    """Of (prompt_embeds, its mask, negative_prompt_embeds, its mask)."""
    positive, mask, negative, negative_mask = call.result
    return real_columns(positive, mask), None if negative is None else real_columns(negative, negative_mask)


def real_columns(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Of each row of `states` [row, column, feature] the columns that the mask keeps, which must come first."""
    if mask is None:
        return list(states.unbind())
    lengths = mask.long().sum(1).tolist()
    if not all(bool(row[:length].all()) for row, length in zip(mask, lengths)):
        raise ToushiError("a text has padding before its tokens, where the model has it behind: set padding_side=right")
    return [row[:length] for row, length in zip(states, lengths)]


# --- templates ---


def around_prompt(filled: str) -> tuple[str, str]:
    """What stands before and after PROMPT_MARK in a template that was filled in with it."""
    before, _, after = filled.partition(PROMPT_MARK)
    return before, after


def qwen3_template(thinking: bool) -> Callable[[EncodePromptCall, bool], tuple[str, str]]:
    """`PromptPart.template` of Qwen3's chat template, with the prompt as the user's message."""

    def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
        message = [{"role": "user", "content": PROMPT_MARK}]
        return around_prompt(
            call.model.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        )

    return template
