"""Prompts with a token for each text column of the denoiser.

A family describes its text as `PromptPart`s, and where `encode_prompt` returns the states. Everything else is here:
which prompt a row has, which ids the text encoders got, and what these ids spell.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, PromptTokens
from toushi.probe.text.alignment import Token, join_words, segment, unknown_words
from toushi.probe.text.spelling import SpellingError, Vocabulary, align_tokens

PROMPT_MARK = "toushi7prompt"  # put into a chat template in place of the prompt


class UnspelledPrompt(UserWarning):
    """Encoded tokens do not spell the prompt, so their characters in it are not known."""


class UnknownToEncoder(UserWarning):
    """The vocabulary of a text encoder lacks words of the prompt. The encoder cannot tell them apart."""


@dataclass(frozen=True)
class PromptPart:
    """Consecutive text columns of the denoiser that come from one text encoder, or from several side by side.

    encoders          components whose states are joined feature by feature in these columns (SDXL has two). The ids
                      of the first one that was called label the columns
    prompt_arguments  arguments of `encode_prompt` that may have the prompt; the first one that is not None counts. Those
                      of the negative prompt have the same names with `negative_` before
    column_positions  (call, number of positions) -> the encoder's positions that become columns, in this order
    skip_padding      whether positions that the encoder's mask excludes become no columns
    template          (call, whether it is the negative prompt) -> what the pipeline puts before and after the prompt
    """

    encoders: tuple[str, ...] = ("text_encoder",)
    prompt_arguments: tuple[str, ...] = ("prompt",)
    column_positions: Callable[[EncodePromptCall, int], Sequence[int]] = lambda call, count: range(count)
    skip_padding: bool = False
    template: Callable[[EncodePromptCall, bool], tuple[str, str]] = lambda call, negative: ("", "")


BranchStates = tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]  # of the prompts, of the negative prompts


class PromptFields(TypedDict):
    """Fields of a family."""

    encoded_prompts: Callable[[EncodePromptCall], dict[str, list[EncodedPrompt]]]
    tokens_of_encoder_call: Callable[[EncodePromptCall, int], tuple[str, list[PromptTokens]]]


def prompts_in_one_call(
    parts: Sequence[PromptPart], states_of: Callable[[EncodePromptCall], BranchStates], block: int = 1
) -> PromptFields:
    """Fields of a family whose `encode_prompt` encodes both branches.

    `states_of` gives the states [column, feature] of the prompts and of the negative prompts, without padding; None
    for a branch without prompts. The denoiser pads the columns to a multiple of `block` and attends to the padding.
    """

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        positive, negative = states_of(call)
        is_encoded = call.arguments.get("prompt_embeds") is None  # the encoder was called for the prompts
        prompts = {"cond": label_prompts(call, parts, positive, 0 if is_encoded else None, block=block)}
        if negative is not None and len(negative):
            index = int(is_encoded) if call.arguments.get("negative_prompt_embeds") is None else None
            prompts["uncond"] = label_prompts(call, parts, negative, index, negative=True, block=block)
        return prompts

    def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
        negative = index > 0 or call.arguments.get("prompt_embeds") is not None
        return "uncond" if negative else "cond", tokens_of_rows(call, parts, index, negative)

    return {"encoded_prompts": encoded_prompts, "tokens_of_encoder_call": tokens_of_encoder_call}


def prompts_in_two_calls(
    parts: Sequence[PromptPart], states_of: Callable[[EncodePromptCall], Sequence[Tensor]]
) -> PromptFields:
    """Fields of a family that calls `encode_prompt` for the prompts, and then for the negative prompts."""

    def branch_of(call: EncodePromptCall) -> str:
        return "uncond" if "cond" in call.earlier else "cond"

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        is_encoded = call.arguments.get("prompt_embeds") is None
        return {branch_of(call): label_prompts(call, parts, states_of(call), 0 if is_encoded else None)}

    def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
        return branch_of(call), tokens_of_rows(call, parts, index, negative=False)

    return {"encoded_prompts": encoded_prompts, "tokens_of_encoder_call": tokens_of_encoder_call}


# --- labels ---


def label_prompts(
    call: EncodePromptCall,
    parts: Sequence[PromptPart],
    states: Sequence[Tensor] | None,
    index: int | None,
    negative: bool = False,
    block: int = 1,
) -> list[EncodedPrompt]:
    """The prompts of one branch, one for each picture, with their tokens.

    states  of each picture [column, feature], without padding
    index   of the text encoders' call that made them; None if they came as embeddings. Then only the states are known,
            and the tokens are numbers
    block   the denoiser pads the columns to a multiple of it
    """
    if states is None:
        return []
    encoder_calls = call.encoder_calls.get(parts[0].encoders[0], ())
    rows = len(encoder_calls[index].ids) if index is not None and index < len(encoder_calls) else 0
    if not rows or len(states) % rows:
        return [EncodedPrompt(None, (), tuple(numbered_tokens(len(columns), block)), columns) for columns in states]
    prompts, pictures = [], len(states) // rows
    for row in range(rows):
        prompt, ids, tokens, cut = _read_row(call, parts, index or 0, row, rows, negative)
        for columns in states[row * pictures : (row + 1) * pictures]:
            kept = [t if (t.column or 0) < len(columns) else replace(t, column=None) for t in tokens]
            width = sum(token.column is not None for token in kept)
            padding = padding_tokens(width, round_up(max(width, len(columns)), block))
            prompts.append(EncodedPrompt(prompt, ids, (*kept, *padding), columns, cut))
    return prompts


def tokens_of_rows(
    call: EncodePromptCall, parts: Sequence[PromptPart], index: int, negative: bool
) -> list[PromptTokens]:
    """Prompt and tokens of each row of one call of the first encoder. Its output is not needed."""
    rows = len(call.encoder_calls[parts[0].encoders[0]][index].ids)
    return [_read_row(call, parts, index, row, rows, negative) for row in range(rows)]


def _read_row(
    call: EncodePromptCall, parts: Sequence[PromptPart], index: int, row: int, rows: int, negative: bool
) -> PromptTokens:
    """The prompt of one row of `rows`, the ids of its first encoder, and the tokens of all its parts."""
    tokens: list[Token] = []
    cuts: list[int | None] = []
    first_prompt, first_ids, width = None, None, 0
    for part in parts:
        encoder = next((name for name in part.encoders if len(call.encoder_calls.get(name, ())) > index), None)
        if encoder is None:
            continue
        names = [f"negative_{name}" if negative else name for name in part.prompt_arguments]
        argument = next((call.arguments[name] for name in names if call.arguments.get(name) is not None), None)
        prompt = _prompt_of_row(argument, row, rows)
        first_prompt = prompt if first_prompt is None else first_prompt
        inputs = call.encoder_calls[encoder][index]
        ids, mask = inputs.ids[row], None if inputs.mask is None else inputs.mask[row]
        positions = [
            i for i in part.column_positions(call, len(ids)) if not part.skip_padding or mask is None or mask[i]
        ]
        columns: list[int | None] = [None] * len(ids)
        for column, position in enumerate(positions, start=width):
            columns[position] = column
        encoders = tuple(name for name in part.encoders if getattr(call.model, name, None) is not None)
        vocabulary = Vocabulary.from_tokenizer(getattr(call.model, encoder.replace("text_encoder", "tokenizer")))
        spelled, cut = _spell(vocabulary, ids, mask, prompt, columns, encoders, part.template(call, negative))
        if prompt != first_prompt:  # spans count in the first prompt
            spelled = [replace(token, span=None) for token in spelled]
        else:
            cuts.append(cut)
        tokens += [token for token in spelled if token.kind != "pad" or token.column is not None]
        if first_ids is None:
            first_ids = tuple(token.id for token in spelled if token.kind != "pad" and token.id is not None)
        width += sum(column is not None for column in columns)
    read_by_all = [cut for cut in cuts if cut is not None]
    cut = max(read_by_all) if cuts and len(read_by_all) == len(cuts) else None  # what no encoder reads
    return PromptTokens(first_prompt, first_ids or (), tuple(tokens), cut)


def _spell(
    vocabulary: Vocabulary,
    ids: Sequence[int],
    mask: Sequence[int] | None,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
) -> tuple[list[Token], int | None]:
    """The tokens of these ids with their spans in the prompt, and the first character that was cut, or None.

    Warns if the prompt was cut, if its text was changed, and of words that the vocabulary lacks.
    """
    try:
        tokens, cut, changed = align_tokens(vocabulary, ids, mask, prompt, columns, encoders, template)
    except SpellingError as error:
        warnings.warn(
            UnspelledPrompt(
                f"the ids that {encoders[0]} got do not spell the prompt {prompt!r:.60}: {error}. Its maps are by token "
                "only, not by word (a pipeline may have cleaned or replaced the text)."
            ),
            stacklevel=2,
        )
        return [
            Token(id, vocabulary.piece(id), None, kind, encoders, index, column)
            for index, (id, kind, column) in enumerate(zip(ids, vocabulary.kinds(ids, mask), columns))
        ], None
    if cut is not None:
        warnings.warn(PromptCut(f"the prompt is longer than {encoders[0]} reads; cut: {prompt[cut:]}"), stacklevel=2)
    if changed:
        warnings.warn(
            UnspelledPrompt(
                f"no token of {encoders[0]} spells {changed!r:.60} of the prompt {prompt!r:.60}. These characters have no "
                "map (a pipeline may have cleaned or replaced them)."
            ),
            stacklevel=2,
        )
    if unknown := unknown_words(segment(prompt), tokens):
        warnings.warn(
            UnknownToEncoder(
                f"the vocabulary of {encoders[0]} lacks {join_words(unknown)}. It reads <unk> in their place, and words "
                "in one <unk> have one map."
            ),
            stacklevel=2,
        )
    return tokens, cut


def _prompt_of_row(argument: str | Sequence[str] | None, row: int, rows: int) -> str:
    """The prompt of one row. The argument is one prompt, a list of prompts, or None for an empty one."""
    if argument is None or isinstance(argument, str):
        return argument or ""
    return argument[row] if len(argument) == rows else argument[0]


def numbered_tokens(count: int, block: int = 1) -> list[Token]:
    """Tokens #0, #1, … of columns whose ids are not known, and padding up to a multiple of `block`."""
    numbered = [Token(None, f"#{column}", None, "text", (), column, column) for column in range(count)]
    return numbered + padding_tokens(count, round_up(count, block))


def padding_tokens(start: int, end: int) -> list[Token]:
    """Tokens of columns that no text encoder made. The denoiser attends to them nevertheless."""
    return [Token(None, "", None, "pad", (), column, column) for column in range(start, end)]


def round_up(count: int, block: int) -> int:
    """The next multiple of `block`."""
    return -(-count // block) * block


# --- states, as `encode_prompt` returns them ---


def unmasked_states(call: EncodePromptCall) -> BranchStates:
    """States of a call that returned (prompt_embeds, negative_prompt_embeds, …). Every column is attended to."""
    positive, negative = call.result[:2]
    return positive.unbind(), None if negative is None else negative.unbind()


def masked_states(call: EncodePromptCall) -> BranchStates:
    """States of a call that returned (prompt_embeds, its mask, negative_prompt_embeds, its mask)."""
    positive, mask, negative, negative_mask = call.result
    return real_columns(positive, mask), None if negative is None else real_columns(negative, negative_mask)


def real_columns(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Of each row of `states` [row, column, feature] the columns that the mask keeps. Raises ToushiError if padding is
    not behind them."""
    if mask is None:
        return list(states.unbind())
    lengths = mask.long().sum(1).tolist()
    if not all(bool(row[:length].all()) for row, length in zip(mask, lengths)):
        raise ToushiError("expected padding behind the tokens of a text, but it is before them: set padding_side=right")
    return [row[:length] for row, length in zip(states, lengths)]


# --- templates ---


def split_template(text: str) -> tuple[str, str]:
    """What is before and after PROMPT_MARK in a template that has it in place of the prompt."""
    before, _, after = text.partition(PROMPT_MARK)
    return before, after


def qwen3_template(thinking: bool) -> Callable[[EncodePromptCall, bool], tuple[str, str]]:
    """`PromptPart.template` of Qwen3's chat template, with the prompt as the user's message."""

    def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
        message = [{"role": "user", "content": PROMPT_MARK}]
        return split_template(
            call.model.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        )

    return template
