"""The grid of image cells that an attention map has."""

from toushi.probe.base.errors import ToushiError


class UnknownGrid(ToushiError):
    """The queries of an attention are no grid of image cells."""


def grid_of(latent: tuple[int, int], cells: int) -> tuple[int, int]:
    """Rows and columns of a map with so many cells: the latent's own grid, or that grid 2, 3, 4 … times coarser."""
    for coarser in range(1, max(latent) + 1):
        grid = (-(-latent[0] // coarser), -(-latent[1] // coarser))
        if grid[0] * grid[1] == cells:
            return grid
    raise UnknownGrid(f"{cells} image positions are no whole fraction of a latent of {latent[0]}x{latent[1]} cells")
