"""The prompt as the model gets it: every token, what it stands for, and its share of the attention."""

from dataclasses import replace

from matplotlib.patches import Rectangle

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.text_width import truncate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import CATEGORIES, FAINT, StyledFigure, percent, styled
from toushi.probe.text.alignment import Token
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import PADS

ROW, BLOCK, LONGEST = 0.19, 3.45, 39  # inches, inches, rows: 77 tokens are as wide as a page
HEADS = (
    (Bilingual(en="position", zh="位置"), 0.5, "right"),
    (Bilingual(en="id", zh="编号"), 0.9, "right"),
    (Bilingual(en="token", zh="词元"), 1.02, "left"),
    (Bilingual(en="word", zh="词"), 1.65, "left"),
)
SHARE, BAR = 2.38, 0.62  # inches to where the bars begin, and of the longest


@styled
def tokens_figure(trace: Trace, *, branch: str = "cond", language: str = "en") -> StyledFigure:
    """A table with one row for each token: position, id, characters, word, and its share of the attention.

    The shares of all tokens, and of `rest` where there is one, sum to 1. Special tokens and pads are grey.
    `language` of the labels: zh or en.
    """
    tokens, words = _rows(trace, branch), trace.words(branch)
    mass = trace.mass(branch)
    shares: dict[int | None, float] = dict(zip(mass["token"].values.tolist(), mass.values.tolist()))  # by column
    blocks = max(1, -(-len(tokens) // LONGEST))
    rows = min(len(tokens), LONGEST)
    width, height = blocks * BLOCK, (rows + 2) * ROW + 0.15
    figure = StyledFigure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    top = max([*shares.values(), 1e-9])
    for block in range(blocks):
        left = block * BLOCK
        for name, x, side in (*HEADS, (Bilingual(en="share of the attention", zh="注意力占比"), SHARE, "left")):
            axes.text(left + x, 0.22, name.translate(language), ha=side, va="center", size=7, color=FAINT)
        for row, token in enumerate(tokens[block * LONGEST : (block + 1) * LONGEST]):
            y, colour = 0.22 + (row + 1) * ROW, "#222222" if token.is_text else FAINT
            inside = [w.text for w in words if token.span and w.start < token.span[1] and token.span[0] < w.end]
            shown = f"{token.text} <unk>" if token.kind == "unknown" and token.span else token.text
            cells = (
                token.position,
                token.id,
                truncate(shown, 10).strip() or "␣",
                truncate("+".join(inside), 12),
            )
            for (_, x, side), cell in zip(HEADS, cells):
                axes.text(left + x, y, drawable(str(cell)), ha=side, va="center", size=8, color=colour)
            share = shares.get(token.column, 0.0)
            fill = CATEGORIES[0] if token.is_text else "#B0B0B0"
            axes.add_patch(Rectangle((left + SHARE, y - 0.06), share / top * BAR, 0.12, color=fill, lw=0))
            if token.column in shares:
                note = percent(share)
            elif token.column is None:
                note = translate(language, en="not in the denoiser", zh="不进入去噪网络")
            else:
                note = translate(language, en="not kept", zh="未保存")
            axes.text(left + SHARE + share / top * BAR + 0.05, y, note, va="center", size=7, color=colour)
    return figure


def _rows(trace: Trace, branch: str) -> list[Token]:
    """Every token; pads of which only the sum was kept are one row, where the first of them stands."""
    summed = set(trace.manifest.branches[branch].pad_columns or ())
    rows = []
    for token in trace.tokens(branch):
        if token.column not in summed:
            rows.append(token)
        elif all(row.column != PADS for row in rows):
            rows.append(replace(token, text=f"{token.text} ×{len(summed)}", column=PADS))
    return rows
