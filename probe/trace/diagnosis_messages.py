"""The output of `toushi why`, in English and Chinese."""

from toushi.probe.base.bilingual_text import Messages

SCALE = (
    "Scale the attention to the word: toushi edit {folder} --scale {word}=3",
    "放大对该词的注意力：toushi edit {folder} --scale {word}=3",
)
# key: (English, Chinese)
MESSAGES = Messages(
    {
        "word": ("word", "词"),
        "tokens": ("tokens", "词元"),
        "share": ("share of attention", "注意力占比"),
        "peers": ("words of its class", "同类词"),
        "special": ("special tokens and pads", "特殊词元与填充"),
        "peak": ("peak", "峰值"),
        "peak_at": ("{share} at {site}, step {step}", "{share}，在 {site}，第 {step} 步"),
        "peak_of_sum": ("{share} at {site} (steps were not kept)", "{share}，在 {site}（未保存各步）"),
        "contrast": ("contrast of its map", "图的对比度"),
        "contrast_is": (
            "{value} (0: like the other words; below {limit}: no contrast)",
            "{value}（0：与其他词相同；低于 {limit}：没有对比）",
        ),
        "finding": ("finding", "发现"),
        "next": ("try next", "下一步"),
        "test": ("without the word", "去掉该词"),
        "test_is": (
            "{changed} of the pixels change, mean difference {difference} of 255",
            "{changed} 的像素改变，平均差 {difference}（满分 255）",
        ),
        "test_unknown": ("the pictures cannot be compared", "两图无法比较"),
        # --- findings
        "cut": (
            "The prompt is too long: no token of the word is left, so the model never reads it.",
            "提示词过长：该词没有词元留下，模型读不到它。",
        ),
        "changed": (
            "No token spells the word: its text was changed or removed before the encoder read it.",
            "没有词元拼出该词：它的文字在编码器读到之前被改动或删除。",
        ),
        "dropped": (
            "The text encoder reads the word, but the denoiser does not get its tokens.",
            "文本编码器读到了该词，但它的词元不进入去噪网络。",
        ),
        "unknown": (
            "The encoder reads <unk> in place of what its vocabulary lacks: {unknown}.",
            "词表里没有以下的词，编码器读到的是 <unk>：{unknown}。",
        ),
        "split": ("It shares a token with {shared}.", "它与{shared}共用一个词元。"),
        "sink": (
            "Special tokens and pads get more than {limit} of the attention, so little is left for any word.",
            "特殊词元与填充得到的注意力超过 {limit}，留给各词的很少。",
        ),
        "faint": (
            "It gets less than half of the median of the words of its class ({median}).",
            "它得到的不到同类词中位数（{median}）的一半。",
        ),
        "no_contrast": (
            "Its map looks like those of the other words: it points to no place of its own.",
            "它的图与其他词的图相似：没有指向自己的位置。",
        ),
        "nothing": (
            "Nothing unusual: the model reads the word, and its attention has a place of its own.",
            "未见异常：模型读到了该词，它的注意力也有自己的位置。",
        ),
        "no_effect": (
            "Without the word hardly a pixel changes (below {limit}): the model ignores it, or the other words say the same.",
            "去掉该词后几乎没有像素改变（低于 {limit}）：模型忽略了它，或其他词已有同样的意思。",
        ),
        "has_effect": (
            "Without the word the picture is another: the word is not ignored.",
            "去掉该词后图就变了：该词并未被忽略。",
        ),
        # --- what to try
        "try_cut": ("Shorten the prompt, or move the word to the front.", "缩短提示词，或把该词移到前面。"),
        "try_changed": (
            "See which tokens the encoder got: toushi figure {folder} --kind tokens",
            "查看编码器得到了哪些词元：toushi figure {folder} --kind tokens",
        ),
        "try_dropped": (
            "Move the word, or see which tokens remain: toushi figure {folder} --kind tokens",
            "移动该词，或查看留下了哪些词元：toushi figure {folder} --kind tokens",
        ),
        "try_unknown": ("Use a synonym that the vocabulary has.", "换成词表里有的近义词。"),
        "try_split": ("Separate the word by a space or a comma.", "用空格或逗号把该词分开。"),
        "try_sink": SCALE,
        "try_faint": SCALE,
        "try_no_contrast": (
            "Name the place or a property of the thing in the prompt, or another seed.",
            "在提示词里写明位置或特征，或换一个种子。",
        ),
        "try_test": (
            "Test whether the word matters: toushi why {folder} {word} --test",
            "检验该词有没有作用：toushi why {folder} {word} --test",
        ),
        "try_remove": (
            "Test whether its attention matters: toushi edit {folder} --remove {word}",
            "检验它的注意力有没有作用：toushi edit {folder} --remove {word}",
        ),
    }
)
