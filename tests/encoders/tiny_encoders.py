"""Transformers of each kind, tiny and untrained, with tokenizers trained on the spot."""

from importlib import metadata

import pytest
import torch
from packaging.version import Version
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.text.prompts import TEXTS

CORPUS = [*TEXTS, "我在河边的银行钓鱼", "他去银行存钱了", "ＡＢＣ，café ﬃ", "İstanbul, don't!"] * 2
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}


def _fast(inner: Tokenizer, **names):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def word_pieces():
    """As BERT's: lower-cased, accents stripped, Chinese characters apart, [UNK] for what it does not know."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _fast(inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def sentence_pieces():
    """As XLM-R's and T5's: NFKC, ▁ for spaces and before the text."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=260, special_tokens=specials, unk_token="<unk>")
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return _fast(inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_pieces(wrapped_in: tuple[str, str] | None = None, lower: bool = False):
    """As Qwen's (nothing around the text) and CLIP's (lower-cased, between two specials)."""
    inner = Tokenizer(models.BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lower else [])]
    inner.normalizer = normalizers.Sequence(steps)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    specials = list(wrapped_in or ["<|endoftext|>"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=alphabet)
    inner.train_from_iterator(CORPUS, trainer)
    if wrapped_in:
        pairs = list(zip(wrapped_in, range(2)))
        inner.post_processor = processors.TemplateProcessing(
            single=f"{wrapped_in[0]} $A {wrapped_in[1]}", special_tokens=pairs
        )
    return _fast(inner, eos_token=specials[-1], pad_token=specials[-1])


def bert():
    from transformers import BertConfig, BertModel

    tokenizer = word_pieces()
    return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **WIDTHS)), tokenizer


def xlm_roberta():
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = sentence_pieces()
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **WIDTHS)
    return XLMRobertaModel(config), tokenizer


def clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = byte_pieces(("<|startoftext|>", "<|endoftext|>"), lower=True)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1, **WIDTHS
    )
    return CLIPTextModel(config), tokenizer


def t5():
    """The whole of it, encoder and decoder."""
    from transformers import T5Config, T5Model

    tokenizer = sentence_pieces()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=2,
        pad_token_id=1,
        decoder_start_token_id=1,
    )
    return T5Model(config), tokenizer


def qwen3():
    """Causal, two query heads for each key head."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = byte_pieces()
    config = Qwen3Config(
        vocab_size=len(tokenizer), max_position_embeddings=512, num_key_value_heads=2, head_dim=8, **WIDTHS
    )
    return Qwen3Model(config), tokenizer


KINDS = {make.__name__: make for make in (bert, xlm_roberta, clip, t5, qwen3)}


def need_attention(kind: str) -> None:
    """Skips the test where this kind's attention cannot be read: T5 multiplies by itself up to transformers 4."""
    if kind == "t5" and (release := Version(metadata.version("transformers"))) < Version("5"):
        pytest.skip(f"the attention of T5 can be read from transformers 5 on, and {release} is installed")


def made(kind: str):
    """(model, tokenizer) of this kind; what would be zero or one in a fresh model is random, so everything matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = KINDS[kind]()
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight", "LayerNorm.weight")):
                torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.3)
    return model.eval().requires_grad_(False), tokenizer


def eager_bert():
    """A BERT whose attention cannot be read: it multiplies by itself."""
    from transformers import AutoModel

    model, tokenizer = made("bert")
    eager = AutoModel.from_config(model.config, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    return eager.eval().requires_grad_(False), tokenizer
