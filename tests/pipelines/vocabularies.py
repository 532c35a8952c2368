"""Small tokenizers of each kind that diffusers' pipelines use, in their own code, with vocabularies made here.

Up to release 4 of transformers they read files, and some are written in plain Python; since release 5 they take their
vocabulary as an argument, and all stand on the library `tokenizers`.
"""

import io
import json
import tempfile
from functools import cache
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

FROM_FILES = int(transformers.__version__.partition(".")[0]) < 5
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_home = tempfile.TemporaryDirectory()  # of the files that some tokenizers read
PIECES = ["red", "cat", "moon", "and", "blue", "is", "the", "on", "left", "猫", "月亮", "左边", "一只", "红色", "的"]


def merged(words: list[str], ends: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary that spells everything, and merges that join these words from left to right."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET)] if ends else [*ALPHABET]
    merges = []
    for word in words:
        pieces = list(letters.pre_tokenize_str(word)[0][0])
        if ends:
            pieces[-1] += "</w>"
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    merges = list(dict.fromkeys(merges))
    return {piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))}, merges


def byte_level(kind: type, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options):
    """A tokenizer of this class."""
    if not FROM_FILES:
        return kind(vocab=vocabulary, merges=merges, **options)
    folder = Path(tempfile.mkdtemp(dir=_home.name))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return kind(str(folder / "vocab.json"), str(folder / "merges.txt"), **options)


def clip_tokenizer(pad: str = "<|endoftext|>"):
    vocabulary, merges = merged(PIECES, ends=True)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return byte_level(transformers.CLIPTokenizer, vocabulary, merges, pad_token=pad, model_max_length=77)


def t5_tokenizer(length: int = 512):
    """Knows no 月: it is <unk>, as every Chinese character is for the real one."""
    letters = [*map(chr, range(33, 127)), *"猫左边是右一只，。"]
    words = [f"▁{piece}" for piece in PIECES if piece.isascii()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(letter, -5.0) for letter in letters] + [(word, -1.0) for word in words]
    if not FROM_FILES:
        return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=3, model_max_length=length)
    fast = tokenizers.Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    fast.decoder = decoders.Metaspace()
    end = [("</s>", 1)]
    fast.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", special_tokens=end)
    return transformers.T5TokenizerFast(tokenizer_object=fast, extra_ids=3, model_max_length=length)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer():
    vocabulary, merges = merged(PIECES, ends=False)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = byte_level(transformers.Qwen2Tokenizer, vocabulary, merges, additional_special_tokens=specials[1:])
    made.chat_template = CHAT
    return made


def picture_tokenizer():
    """Qwen's, with the tokens around pictures and in place of them."""
    made = qwen_tokenizer()
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    made.add_tokens([f"<|{name}|>" for name in names], special_tokens=True)
    return made


MISTRAL = (
    "<s>{% for message in messages %}{% set text = message['content'][0]['text'] %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)


def mistral_tokenizer():
    """Byte-level BPE, filled up on the left. FLUX.2 has it inside a PixtralProcessor, which needs torchvision."""
    vocabulary, merges = merged(PIECES, ends=False)
    specials = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    vocabulary = {piece: index for index, piece in enumerate([*specials, *vocabulary])}
    fast = tokenizers.Tokenizer(BPE(vocabulary, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, padding_side="left", additional_special_tokens=specials[4:], **names
    )
    made.chat_template = MISTRAL
    return made


def bert_tokenizer():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["red", "cat", "moon", "blue", *"猫左边月亮是只一，,", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*specials, *words]))}
    if not FROM_FILES:
        return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)
    file = Path(tempfile.mkdtemp(dir=_home.name)) / "vocab.txt"
    file.write_text("\n".join(vocabulary), encoding="utf-8")
    return transformers.BertTokenizer(str(file), do_lower_case=True)


def gemma_tokenizer():
    """SentencePiece's BPE: what it has no piece for becomes bytes."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*map(chr, range(33, 127)), *"▁猫左边是右一只月亮，。"]
    vocabulary, merges = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters], []
    for word in (*(f"▁{piece}" for piece in PIECES if piece.isascii()), "月亮", "左边", "一只", "cat", "red"):
        joined = word[0]
        for letter in word[1:]:
            merges.append((joined, letter))
            joined += letter
            vocabulary.append(joined)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))}
    merges = list(dict.fromkeys(merges))
    if not FROM_FILES:
        return transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    fast = tokenizers.Tokenizer(BPE(vocabulary, merges, fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.GemmaTokenizerFast(tokenizer_object=fast, add_bos_token=True)


@cache
def _sentencepiece_model() -> str:
    """The file of a SentencePiece model that knows PIECES; what it has no piece for becomes bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(PIECES), "".join(PIECES), "the quick brown fox jumps over lazy dogs"] * 8),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    file = Path(_home.name) / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return str(file)


def chatglm_tokenizer():
    return ChatGLMTokenizer(_sentencepiece_model())
