"""What visitors of the explorer may do, as its command line says it: `-- [--shared] [--read-only] FOLDER`."""

import sys
from pathlib import Path

SHARED, READ_ONLY = "--shared", "--read-only"


def arguments() -> list[str]:
    """The arguments of `streamlit run dashboards/app.py -- …`. A test that runs this script has others, which are no such."""
    return sys.argv[1:] if Path(sys.argv[0]).name == "app.py" else []


def is_read_only() -> bool:
    """Whether traces are only shown: nobody records, edits or deletes any."""
    return READ_ONLY in arguments()


def is_shared() -> bool:
    """Whether other people can come, who must not open other folders than those of the gallery, or load models."""
    return is_read_only() or SHARED in arguments()
