"""Models of texts and images, by their text side; encoders that change the length of the sequence are refused."""

import pytest
import transformers

from tests.encoders.tiny_encoders import WIDTHS, byte_pieces, word_pieces
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import UnknownEncoder, wrap_encoder

VISION = {"image_size": 16, "patch_size": 8, **WIDTHS}


def chinese_clip(tokenizer):
    text = {"vocab_size": len(tokenizer), **WIDTHS}
    return transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION))


def clip(tokenizer):
    text = {"vocab_size": len(tokenizer), "eos_token_id": 3, **WIDTHS}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION))


def siglip(tokenizer):
    text = {"vocab_size": len(tokenizer), **WIDTHS}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))


@pytest.mark.parametrize("make", [chinese_clip, clip, siglip])
def test_the_text_side_is_opened(make, tmp_path):
    tokenizer = word_pieces()
    model = make(tokenizer).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for encoder in (tmp_path, wrap_encoder(model, tokenizer)):
        (encoding,) = encode_layers(encoder, ["河边的银行 red cat"])
        assert encoding.states.shape == (4, len(encoding.tokens), 32) and "cat" in [w.text for w in encoding.words]
        assert encoding.attention.sizes["layer"] == 3


def test_images_without_a_text_side_are_refused():
    model = chinese_clip(tokenizer := word_pieces())
    model.language_side = model.text_model
    del model.text_model
    with pytest.raises(UnknownEncoder, match="its text side is not found"):
        wrap_encoder(model, tokenizer)


def test_a_sequence_that_becomes_shorter_is_refused():
    tokenizer = byte_pieces()
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "vocab_size": len(tokenizer)}
    model = transformers.FunnelModel(
        transformers.FunnelConfig(block_sizes=[1, 1], num_decoder_layers=1, **sizes)
    ).eval()
    with pytest.raises(UnknownEncoder, match="list of|each token"):
        encode_layers(wrap_encoder(model, tokenizer), ["a red cat"])


def test_a_last_layer_that_drops_tokens_is_refused():
    tokenizer = word_pieces()
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **WIDTHS)).eval()
    model.encoder.layer[-1].register_forward_hook(lambda module, inputs, output: output[:, ::2])
    with pytest.raises(UnknownEncoder, match="of BertModel must be a state for each token"):
        encode_layers(wrap_encoder(model, tokenizer), ["a red cat"])
