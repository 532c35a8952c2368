"""Prompts with a token for each text column of the denoiser.

A family describes its text as `PromptPart`s, and where `encode_prompt` returns the states. Everything else is here:
which prompt a row has, which ids the text encoders got, and what these ids spell.
"""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, TypedDict

from torch import Tensor

from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall, EncoderInputs, PromptTokens
from toushi.probe.pipelines.tensor_values import real_columns
from toushi.probe.text.alignment import Token, join_words, segment, unknown_words
from toushi.probe.text.spelling import SpellingError, Vocabulary, align_tokens


class UnspelledPrompt(UserWarning):
    """Encoded tokens do not spell the prompt, so their characters in it are not known."""


class UnknownToEncoder(UserWarning):
    """The vocabulary of a text encoder lacks words of the prompt. The encoder cannot tell them apart."""


class UnlabelledColumns(UserWarning):
    """It is not known which tokens the text columns are, so they are numbered."""


class MixedColumns(UserWarning):
    """Text columns are made of the tokens of two different prompts, side by side."""


class _UnknownTokens(ValueError):
    """It is not known which tokens the text columns are. The message says why."""


@dataclass(frozen=True)
class PromptPart:
    """Consecutive text columns of the denoiser that come from one text encoder, or from several side by side.

    encoders          components whose states are joined feature by feature in these columns (SDXL has two). The ids
                      of the first one that was called label the columns
    column_positions  (call, number of positions) -> the encoder's positions that become columns, in this order
    skip_padding      whether positions that the encoder's mask excludes become no columns
    template          (call, whether it is the negative prompt) -> what the pipeline puts before and after the prompt
    """

    encoders: tuple[str, ...] = ("text_encoder",)
    column_positions: Callable[[EncodePromptCall, int], Sequence[int]] = lambda call, count: range(count)
    skip_padding: bool = False
    template: Callable[[EncodePromptCall, bool], tuple[str, str]] = lambda call, negative: ("", "")


BranchStates = tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]  # of the prompts, of the negative prompts


class PromptFields(TypedDict):
    """Fields of a family."""

    encoded_prompts: Callable[[EncodePromptCall], dict[str, list[EncodedPrompt]]]
    tokens_of_encoder_call: Callable[[EncodePromptCall, int], tuple[str, list[PromptTokens]]]


def prompts_in_one_call(
    parts: Sequence[PromptPart],
    states_of: Callable[[EncodePromptCall], BranchStates],
    block: int = 1,
    as_read: Callable[[EncodePromptCall], EncodePromptCall] = lambda call: call,
) -> PromptFields:
    """Fields of a family whose `encode_prompt` encodes both branches.

    `states_of` gives the states [column, feature] of the prompts and of the negative prompts, without padding; None
    for a branch without prompts. The denoiser pads the columns to a multiple of `block` and attends to the padding.
    `as_read` gives the call with the ids and masks of the encoder's text alone, if the encoder got more.
    """

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        call = as_read(call)
        positive, negative = states_of(call)
        is_encoded = call.arguments.get("prompt_embeds") is None  # the encoder was called for the prompts
        # Some pipelines have zeros for an empty negative prompt.
        is_negative_encoded = call.arguments.get("negative_prompt_embeds") is None and any(
            bool(states.any()) for states in negative or ()
        )
        texts = is_encoded + is_negative_encoded
        place = (0, texts) if is_encoded else None
        prompts = {"cond": label_prompts(call, parts, positive, place, block=block)}
        if negative is not None and len(negative):
            place = (int(is_encoded), texts) if is_negative_encoded else None
            prompts["uncond"] = label_prompts(call, parts, negative, place, negative=True, block=block)
        return prompts

    def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
        negative = index > 0 or call.arguments.get("prompt_embeds") is not None
        return "uncond" if negative else "cond", _tokens_of_rows(as_read(call), parts, index, negative)

    return {"encoded_prompts": encoded_prompts, "tokens_of_encoder_call": tokens_of_encoder_call}


def prompts_in_two_calls(
    parts: Sequence[PromptPart],
    states_of: Callable[[EncodePromptCall], Sequence[Tensor]],
    as_read: Callable[[EncodePromptCall], EncodePromptCall] = lambda call: call,
) -> PromptFields:
    """Fields of a family that calls `encode_prompt` for the prompts, and then for the negative prompts. `as_read`: as
    above."""

    def branch_of(call: EncodePromptCall) -> str:
        own, asked = call.arguments.get("prompt"), call.sample_arguments
        if own is not None and own != asked.get("prompt") and own == asked.get("negative_prompt"):
            return "uncond"
        return "uncond" if "cond" in call.earlier else "cond"

    def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
        place = (0, 1) if call.arguments.get("prompt_embeds") is None else None
        return {branch_of(call): label_prompts(as_read(call), parts, states_of(call), place)}

    def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
        return branch_of(call), _tokens_of_rows(as_read(call), parts, index, negative=False)

    return {"encoded_prompts": encoded_prompts, "tokens_of_encoder_call": tokens_of_encoder_call}


# --- labels ---


def label_prompts(
    call: EncodePromptCall,
    parts: Sequence[PromptPart],
    states: Sequence[Tensor] | None,
    place: tuple[int, int] | None,
    negative: bool = False,
    block: int = 1,
) -> list[EncodedPrompt]:
    """The prompts of one branch, one for each picture, with their tokens.

    The tokens are numbers where it is not certain that they are those of the columns; a warning says why.

    states  of each picture [column, feature], without padding
    place   which of how many texts this is, in the order in which the text encoders got them; None if the states came
            as embeddings, or were not encoded. Then only the states are known
    block   the denoiser pads the columns to a multiple of it
    """
    states = states or ()
    names = {name for part in parts for name in part.encoders if call.encoder_calls.get(name)}
    if place is not None and names and len(states):
        try:
            inputs = {name: _inputs_of_text(name, call.encoder_calls[name], *place) for name in names}
            return _label_rows(call, parts, inputs, states, negative, block)
        except _UnknownTokens as reason:
            branch = "negative prompt" if negative else "prompt"
            warnings.warn(
                UnlabelledColumns(
                    f"it is not known which tokens the text columns of the {branch} are, so they are numbered: {reason}"
                ),
                stacklevel=2,
            )
    return [EncodedPrompt(None, (), tuple(numbered_tokens(len(columns), block)), columns) for columns in states]


def _inputs_of_text(name: str, calls: Sequence[EncoderInputs], index: int, count: int) -> "JoinedInputs":
    """What the encoder got for text `index` out of `count`. A long text may have come in pieces, one call for each."""
    pieces, rest = divmod(len(calls), count)
    own = calls[index * pieces : (index + 1) * pieces]
    rows = {len(piece.ids) for piece in own}
    if rest or len(rows) != 1:
        raise _UnknownTokens(f"{name} computed {len(calls)} batches for {count} text{'s' * (count > 1)}")
    masks = [piece.mask for piece in own if piece.mask is not None]
    ids = [list(chain(*row)) for row in zip(*(piece.ids for piece in own))]
    mask = [list(chain(*row)) for row in zip(*masks)] if len(masks) == pieces else None
    return JoinedInputs(ids, mask, pieces)


def _label_rows(
    call: EncodePromptCall,
    parts: Sequence[PromptPart],
    inputs: Mapping[str, "JoinedInputs"],
    states: Sequence[Tensor],
    negative: bool,
    block: int,
) -> list[EncodedPrompt]:
    """The prompts of the encoders' rows. Raises _UnknownTokens if these are not certain to be those of the columns."""
    rows = len(next(iter(inputs.values())).ids)
    if len(states) % rows or any(len(each.ids) != rows for each in inputs.values()):
        raise _UnknownTokens(f"{', '.join(inputs)} read {rows} rows for {len(states)} pictures")
    pictures = len(states) // rows
    present = [part for part in parts if inputs.keys() & {*part.encoders}]
    widths = [sum(len(_positions(call, part, inputs, row)) for part in present) for row in range(rows)]
    # Some pipelines repeat the masks of several prompts in another order than their states.
    expected, came = sorted(widths * pictures), sorted(map(len, states))
    # A part without its encoder has zeros for columns, which have no token.
    if expected != came and (len(present) == len(parts) or any(map(operator.gt, expected, came))):
        raise _UnknownTokens(f"{', '.join(inputs)} read {widths[0]} tokens for {len(states[0])} columns")
    prompts = []
    for row in range(rows):
        prompt, ids, tokens, cut = _read_row(call, parts, inputs, row, rows, negative)
        for columns in states[row * pictures : (row + 1) * pictures]:
            kept = [t if (t.column or 0) < len(columns) else replace(t, column=None) for t in tokens]
            width = sum(token.column is not None for token in kept)
            padding = padding_tokens(width, round_up(max(width, len(columns)), block))
            prompts.append(EncodedPrompt(prompt, ids, (*kept, *padding), columns, cut))
    return prompts


class JoinedInputs(NamedTuple):
    """What an encoder got for one text of each row, its pieces one behind the other."""

    ids: list[list[int]]  # [row][position]
    mask: list[list[int]] | None
    pieces: int


def _tokens_of_rows(
    call: EncodePromptCall, parts: Sequence[PromptPart], index: int, negative: bool
) -> list[PromptTokens]:
    """Prompt and tokens of each row of one call of the first encoder. Its output is not needed."""
    calls = {name: calls[index] for name, calls in call.encoder_calls.items() if len(calls) > index}
    inputs = {name: JoinedInputs(batch.ids, batch.mask, 1) for name, batch in calls.items()}
    rows = len(inputs[parts[0].encoders[0]].ids)
    try:
        return [_read_row(call, parts, inputs, row, rows, negative) for row in range(rows)]
    except _UnknownTokens:
        return []


def _positions(call: EncodePromptCall, part: PromptPart, inputs: Mapping[str, JoinedInputs], row: int) -> Sequence[int]:
    """The positions of the part's encoder that become columns, in their order."""
    ids, mask, pieces = next(inputs[name] for name in part.encoders if name in inputs)
    positions = part.column_positions(call, len(ids[row]))
    if pieces > 1 and list(positions) != list(range(len(ids[row]))):
        raise _UnknownTokens("the prompt was encoded in pieces, of which only some positions become columns")
    return [i for i in positions if not part.skip_padding or mask is None or mask[row][i]]


def _read_row(
    call: EncodePromptCall,
    parts: Sequence[PromptPart],
    inputs: Mapping[str, JoinedInputs],
    row: int,
    rows: int,
    negative: bool,
) -> PromptTokens:
    """The prompt of one row of `rows`, the ids of its first encoder, and the tokens of all its parts."""
    tokens: list[Token] = []
    cuts: list[int | None] = []
    first_prompt, first_ids, width = None, None, 0
    for part in parts:
        called = [name for name in part.encoders if name in inputs]
        if not called:
            continue
        prompts = {name: _prompt_of_row(_argument(call, name, negative), row, rows) for name in called}
        prompt = prompts[called[0]]
        first_prompt = prompt if first_prompt is None else first_prompt
        columns: list[int | None] = [None] * len(inputs[called[0]].ids[row])
        for column, position in enumerate(_positions(call, part, inputs, row), start=width):
            columns[position] = column
        template = part.template(call, negative)
        readers = tuple(name for name in called if prompts[name] == prompt)
        spelled, cut = _spell(call, inputs, row, rows, negative, prompt, columns, readers, template)
        if first_ids is None:
            first_ids = tuple(token.id for token in spelled if token.kind != "pad" and token.id is not None)
        if others := [name for name in called if name not in readers]:
            other = prompts[others[0]]
            message = f"each text column is made of a token of {prompt!r:.60}, which {readers[0]} reads, and of one of "
            message += f"{other!r:.60}, which {others[0]} reads: its map is of both"
            warnings.warn(MixedColumns(message), stacklevel=2)
            # The column has the first prompt's token, for a column has one.
            nowhere = [None] * len(inputs[others[0]].ids[row])
            second, _ = _spell(call, inputs, row, rows, negative, other, nowhere, tuple(others), template)
            spelled += [replace(token, span=None) for token in second]
        if prompt != first_prompt:  # spans count in the first prompt
            spelled = [replace(token, span=None) for token in spelled]
        else:
            cuts.append(cut)
        tokens += [token for token in spelled if token.kind != "pad" or token.column is not None]
        width += sum(column is not None for column in columns)
    read_by_all = [cut for cut in cuts if cut is not None]
    cut = max(read_by_all) if cuts and len(read_by_all) == len(cuts) else None  # what no encoder reads
    return PromptTokens(first_prompt, first_ids or (), tuple(tokens), cut)


def _argument(call: EncodePromptCall, encoder: str, negative: bool) -> str | Sequence[str] | None:
    """The prompts that an encoder reads: `prompt_2` for `text_encoder_2`, or `prompt` if that is not given."""
    number = encoder.removeprefix("text_encoder")
    names = [f"{'negative_' * negative}prompt{each}" for each in dict.fromkeys((number, ""))]
    return next((call.arguments[name] for name in names if call.arguments.get(name)), None)


def _spell(
    call: EncodePromptCall,
    inputs: Mapping[str, JoinedInputs],
    row: int,
    rows: int,
    negative: bool,
    prompt: str,
    columns: Sequence[int | None],
    encoders: tuple[str, ...],
    template: tuple[str, str],
) -> tuple[list[Token], int | None]:
    """The tokens of one row with their spans in the prompt, and the first character that was cut, or None.

    Warns if the prompt was cut, if its text was changed, if the tokens spell another text, and of words that the
    vocabulary lacks. Raises _UnknownTokens if the text is that of the other branch, or came in pieces.
    """
    tokenizer = getattr(call.model, encoders[0].replace("text_encoder", "tokenizer"))
    vocabulary, (every_id, every_mask, pieces) = Vocabulary.from_tokenizer(tokenizer), inputs[encoders[0]]
    ids, mask = every_id[row], None if every_mask is None else every_mask[row]
    try:
        tokens, cut, changed = align_tokens(vocabulary, ids, mask, prompt, columns, encoders, template)
    except SpellingError as error:
        other = _prompt_of_row(_argument(call, encoders[0], not negative), row, rows)
        if pieces > 1 or (other and _spells(vocabulary, ids, mask, other, template)):
            raise _UnknownTokens(f"the {len(ids)} ids that {encoders[0]} got do not spell {prompt!r:.60}") from None
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
    if cut is not None and pieces > 1:
        raise _UnknownTokens(f"the pieces that {encoders[0]} got end before the prompt does")
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


def _spells(
    vocabulary: Vocabulary, ids: Sequence[int], mask: Sequence[int] | None, text: str, template: tuple[str, str]
) -> bool:
    try:
        align_tokens(vocabulary, ids, mask, text, [None] * len(ids), (), template)
    except SpellingError:
        return False
    return True


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
