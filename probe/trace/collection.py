"""Lists the traces of a folder that holds several."""

from pathlib import Path

from toushi.probe.base.atomic_io import write_json
from toushi.probe.trace.output_dir import reason
from toushi.probe.trace.trace_errors import BadRecord, WriteFailed
from toushi.probe.trace.trace_format import COLLECTION, FIRST_VERSION, MEMBERS, is_member


def write_collection(folder: str | Path, members: list[str], **fields: object) -> None:
    """Lists the traces of a collection. Call it again when there are more: the file is replaced as a whole."""
    if not members or not all(map(is_member, members)) or len(set(members)) != len(members):
        raise BadRecord(f'The members of a collection are different folders named "000", "001", …; {members} came.')
    collection = {"format": COLLECTION, "version": FIRST_VERSION, "members": members}
    try:
        write_json(Path(folder) / MEMBERS, {**collection, **fields, **collection})
    except OSError as error:
        raise WriteFailed(f"Cannot write the collection in {folder}: {reason(error)}.") from None
