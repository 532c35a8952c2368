"""Prompts that broke other tools."""

from hypothesis import strategies as st

TEXTS = [
    "左边是猫，右边是月亮，夜晚",
    "河边的银行在左边，树在右边",
    "猫头鹰和一只红色的猫，水墨画",
    "a red cat on the left, a yellow moon on the right",
    "the cat's owl by the river bank, at night",
] * 4

HARD = [
    "",
    " ",
    "猫",
    "左边是猫，右边是月亮，夜晚",
    "𰻝𰻝面在左边，龘在右边！",
    "一家👨‍👩‍👧和🇨🇳、👍🏽、1️⃣",
    "T恤上的 iPhone手机，café、Привет、お茶",
    "猫、猫头鹰、熊猫和猫",
    "a cat's tail, don't 3.5米",
    "“你好”——《红楼梦》……",
    "<bos><eos><pad>猫",
    "e\u0301 哈\n哈\t\u3000哈",
    "左边是猫，右边是月亮，" * 20,
    "龘" * 100,
]

# Whole characters only: a str may hold lone surrogates, which are not text.
characters = st.characters(exclude_categories=["Cs"])
mixed = st.text(
    st.one_of(characters, st.sampled_from("猫头鹰河边的银行，。！ 𰻝龘👨👩\u200d\ufe0fcat's-3.5é ")),
    max_size=60,
)
prompts = st.one_of(st.sampled_from(HARD), mixed)
