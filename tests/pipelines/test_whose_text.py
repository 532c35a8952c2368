"""A column bears tokens of the text that made its key, or a number: never the tokens of another text."""

import warnings
from functools import wraps
from itertools import zip_longest

import diffusers
import numpy as np
import pytest
import torch

from tests.pipelines.tiny import COMMON, NEGATIVE, PROMPT, draw, families, made
from toushi.probe.pipelines.prompt_tokens import MixedColumns, UnlabelledColumns, UnspelledPrompt
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

OTHER = "the blue moon is on the left"


def recorded(pipeline, folder, prompt=PROMPT, **how):
    plain = draw(pipeline, prompt, **how)[0]
    with record(pipeline, folder, keep="mean", steps=0):
        picture = draw(pipeline, prompt, **how)[0]
    trace = open_trace(folder)
    assert np.array_equal(picture, plain) and trace.verify() == []
    return trace


def texts(trace, encoder, branch="cond"):
    return [token.text for token in trace.tokens(branch) if encoder in token.encoders and token.kind == "text"]


# --- a prompt for each encoder ---


def test_sdxl_names_the_encoder_of_each_prompt(tmp_path):
    pipeline = made("stable-diffusion-xl")
    how = {"prompt_2": "blue moon", "negative": "left", "negative_prompt_2": "the moon"}
    with pytest.warns(MixedColumns, match="'red cat', which text_encoder reads, and of one of 'blue moon'"):
        trace = recorded(pipeline, tmp_path / "run", "red cat", **how)
    assert texts(trace, "text_encoder") == ["red", "cat"] and texts(trace, "text_encoder_2") == ["blue", "moon"]
    assert texts(trace, "text_encoder_2", "uncond") == ["the", "moon"]
    assert trace.manifest.prompt_2 == "blue moon" and trace.manifest.negative_prompt_2 == "the moon"
    assert trace.prompt == "red cat" and trace.manifest.asked is None and trace.heat_map("cat").shape
    same = recorded(pipeline, tmp_path / "same", "red cat", prompt_2="red cat")
    assert texts(same, "text_encoder_2") == ["red", "cat"]


@pytest.mark.filterwarnings("ignore::toushi.probe.pipelines.prompt_tokens.MixedColumns")
def test_stable_diffusion_3_names_the_encoder_of_each_prompt(tmp_path):
    how = {"prompt_2": "blue moon", "prompt_3": "the cat", "negative": "left", "negative_prompt_3": "the moon"}
    trace = recorded(made("stable-diffusion-3"), tmp_path / "run", "red cat", **how)
    assert texts(trace, "text_encoder") == ["red", "cat"] and texts(trace, "text_encoder_2") == ["blue", "moon"]
    assert "".join(texts(trace, "text_encoder_3")).replace(" ", "") == "thecat"
    third = [token for token in trace.tokens() if "text_encoder_3" in token.encoders and token.kind == "text"]
    assert all(token.column >= 77 and token.span is None for token in third)
    assert trace.manifest.prompt_3 == "the cat" and trace.manifest.negative_prompt_3 == "the moon"


def test_flux_labels_by_the_prompt_that_makes_the_keys(tmp_path):
    how = {"prompt_2": "blue moon", "negative": "left", "negative_prompt_2": "the moon"}
    trace = recorded(made("flux"), tmp_path / "run", "red cat", **how)
    assert trace.prompt == trace.manifest.prompt_2 == "blue moon" and trace.manifest.asked == "red cat"
    assert trace.heat_map("moon").shape and trace.manifest.negative_prompt_2 == "the moon"


def test_the_refiner_has_labels_though_it_lacks_the_first_encoder(tmp_path):
    parts = made("stable-diffusion-xl").components
    unet = {**parts["unet"].config, "cross_attention_dim": 16, "projection_class_embeddings_input_dim": 16 + 5 * 8}
    torch.manual_seed(0)
    parts |= {"unet": type(parts["unet"])(**unet).eval().requires_grad_(False), "text_encoder": None, "tokenizer": None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    refiner.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32)
    with record(refiner, tmp_path / "run"):
        draw(refiner, negative=NEGATIVE, image=image, strength=1.0)
    trace = open_trace(tmp_path / "run")
    assert trace.prompt == PROMPT and trace.heat_map("cat").shape and trace.verify() == []
    assert "cat" in texts(trace, "text_encoder_2") and "blue" in texts(trace, "text_encoder_2", "uncond")


# --- prompts in pieces ---


class Pieces(diffusers.StableDiffusionPipeline):
    """Reads long prompts in pieces of 75 tokens; `order` says which text and which piece the encoder gets in which call."""

    order = staticmethod(lambda pieces: pieces)
    ends = True  # whether the first and last position of each piece become columns

    def encode_prompt(self, prompt, device, images, guided, negative_prompt=None, **embeds):
        ids = [
            self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            for text in (prompt, negative_prompt or "")
        ]
        count = -(-max(map(len, ids)) // 75)
        pieces = [(text, number) for text in range(1 + guided) for number in range(count)]
        states = {}
        for text, number in self.order(pieces):
            row = [self.tokenizer.bos_token_id, *ids[text][75 * number : 75 * number + 75]]
            row += [self.tokenizer.eos_token_id] * (77 - len(row))
            states[text, number] = self.text_encoder(torch.tensor([row]))[0]
        kept = slice(None) if self.ends else slice(1, -1)
        joined = [torch.cat([states[text, n][:, kept] for n in range(count)], 1) for text in range(1 + guided)]
        return joined[0], joined[1] if guided else None


LONG = "a red cat on the left, " * 25 + "the moon"


def in_pieces(**how):
    pipeline = type("Own", (Pieces,), how)(**made("stable-diffusion").components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance", [True, False])
def test_a_long_prompt_in_pieces_has_the_labels_of_all_pieces(guidance, tmp_path):
    pipeline = in_pieces()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnlabelledColumns)
        trace = recorded(pipeline, tmp_path / "run", LONG, negative="blue moon", guidance=guidance)
    kinds = [token.kind for token in trace.tokens() if token.column is not None]
    assert len(kinds) % 77 == 0 and len(kinds) > 77 and "text" in kinds[77:]
    assert trace.heat_map("moon").shape and trace.heat_map("cat#25").shape
    if guidance:
        assert texts(trace, "text_encoder", "uncond") == ["blue", "moon"]


@pytest.mark.parametrize(
    "how",
    [
        {"order": staticmethod(lambda pieces: sorted(pieces, key=lambda piece: piece[1]))},  # each piece of both texts
        {"order": staticmethod(lambda pieces: pieces[::-1])},
        {"ends": False},
    ],
)
def test_pieces_that_cannot_be_followed_are_numbers(how, tmp_path):
    with pytest.warns(UnlabelledColumns, match="columns of the prompt are, so they are numbered"):
        trace = recorded(in_pieces(**how), tmp_path / "run", LONG, negative="blue moon")
    for branch in ("cond", "uncond"):
        assert {token.id for token in trace.tokens(branch)} == {None} and trace.manifest.prompt is None
    assert trace.manifest.asked == LONG


# --- the law, over families ---


def before(encode, others):
    """Encodes another text first, as a pipeline may to measure it."""

    @wraps(encode)
    def encode_prompt(*arguments, **named):
        others()
        return encode(*arguments, **named)

    return encode_prompt


def after(encode, others):
    @wraps(encode)
    def encode_prompt(*arguments, **named):
        result = encode(*arguments, **named)
        others()
        return result

    return encode_prompt


@pytest.mark.parametrize("place", [before, after])
@pytest.mark.parametrize("name", families(COMMON))
def test_no_token_of_another_text_is_at_a_column(pipeline, name, place, tmp_path):
    family = family_of(pipeline)
    encoders = [each for each in family.text_encoders if getattr(pipeline, each, None) is not None]

    def others():
        for each in encoders:
            tokenizer = getattr(pipeline, each.replace("text_encoder", "tokenizer"))
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer) if name == "flux-2" else tokenizer
            batch = tokenizer(OTHER, return_tensors="pt", padding="max_length", max_length=77, truncation=True)
            getattr(pipeline, each)(batch.input_ids, attention_mask=batch.attention_mask)

    own = usual_tokens(pipeline, tmp_path / "own")
    pipeline.encode_prompt = place(pipeline.encode_prompt, others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with record(pipeline, tmp_path / "run", keep="mean", steps=0):
                draw(pipeline, steps=1, negative=NEGATIVE)
    finally:
        del pipeline.encode_prompt
    trace = open_trace(tmp_path / "run")
    for branch in trace.branches:
        for came, right in zip_longest(trace.tokens(branch), own[branch]):
            assert came is None or came.id is None or came == right, (branch, came, right)


def usual_tokens(pipeline, folder):
    """The tokens of each branch, encoded by the pipeline's own method."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnspelledPrompt)
        with record(pipeline, folder, keep="mean", steps=0):
            draw(pipeline, steps=1, negative=NEGATIVE)
    trace = open_trace(folder)
    return {branch: trace.tokens(branch) for branch in trace.branches}
