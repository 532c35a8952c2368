"""Writes the table of checked models into docs/families.md and its Chinese twin, from the rows of docs/verified/.

python -m toushi.probe.model_check.verified_tables docs
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.model_check.check_row import read_rows

PAGES = {"families.md": "en", "families.zh.md": "zh"}
BEGIN, END = "<!-- rows of verified/ -->", "<!-- end of the rows -->"
HEADS = {
    "en": ("model", "family", "where", "versions", "laws that hold", "largest difference of a probability", "date"),
    "zh": ("模型", "模型族", "环境", "版本", "成立的定律", "概率的最大差", "日期"),
}


def updated_page(page: str, rows: Sequence[Mapping], language: str) -> str:
    """The page, with the table of these rows between BEGIN and END. Raises ToushiError if the page lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ToushiError(f"the page has no place for the table: expected the lines {BEGIN} and {END}")
    head = HEADS[language]
    lines = [head, ["---"] * len(head), *map(row_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def row_cells(row: Mapping) -> list[str]:
    """The cells of one row, the same in both languages."""
    model, versions, laws = row["model"], row["versions"], row["laws"]
    revision = f" `{model['revision'][:12]}`" if model.get("revision") else ""
    gpu = (row.get("gpu") or {}).get("name")
    tried = [law for law in laws if law["holds"] is not None]
    broken = ", ".join(law["name"] for law in tried if not law["holds"])
    return [
        f"`{model['name']}`{revision}",
        row["family"],
        " ".join(f"`{part}`" for part in (gpu or row["device"], row["dtype"], row["kernel"]) if part),
        " ".join(f"`{name} {versions[name]}`" for name in ("torch", "diffusers", "transformers") if name in versions),
        f"{sum(law['holds'] for law in tried)} / {len(tried)}" + (f" (`{broken}`)" if broken else ""),
        f"{row['difference']:.0e}",
        row["date"],
    ]


def main(folder: Path) -> None:
    rows = read_rows(folder / "verified")
    for name, language in PAGES.items():
        page = folder / name
        write_atomic(page, updated_page(page.read_text(encoding="utf-8"), rows, language))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
