"""The folders of the traces of one recording: one trace is the folder itself, several make it a collection."""

from pathlib import Path

from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.collection import write_collection


class TraceFolders:
    """`paths`: the folders of the traces so far."""

    def __init__(self, root: Path):
        self.root = root
        self.paths: list[Path] = []

    def add(self, count: int) -> list[Path]:
        """Folders for so many new traces. A root that gets more than one trace becomes a collection."""
        if count == 1 and not self.paths:
            self.paths = [self.root]
            return self.paths
        if self.paths == [self.root]:
            self.paths = [_move_into_member(self.root)]
        first = len(self.paths)
        new = [self.root / f"{number:03d}" for number in range(first, first + count)]
        self.paths = self.paths + new
        write_collection(self.root, [path.name for path in self.paths])
        return new


def _move_into_member(folder: Path) -> Path:
    """Moves the trace in the folder to its member 000. The manifest goes last, so that the member is never half there."""
    member = folder / "000"
    member.mkdir()
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == layout.MANIFEST)
    for path in files:
        path.rename(member / path.name)
    return member
