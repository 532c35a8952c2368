"""The sites of a model or a trace as a table."""

from typing import TYPE_CHECKING

from toushi.cli.terminal import table

if TYPE_CHECKING:
    from toushi.probe.trace.manifest import Site


def site_table(sites: "dict[str, Site]") -> str:
    kinds = {"cross": "image to text", "self": "image to image", "encoder": "text to text"}
    rows = [("site", "attention", "grid", "heads")]
    for name, site in sites.items():
        grid = "x".join(map(str, site.grid or [])) or "–"
        rows.append((name, kinds[site.kind], grid, str(site.heads or "–")))
    return table(rows, right=(2, 3))
