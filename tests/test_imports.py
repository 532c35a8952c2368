"""The contracts on imports see every file of the product, and hold."""

import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
FOLDERS = ("hooks", "probe", "experiments", "reports", "dashboards", "toushi/cli")


def test_imports_go_one_way_in_every_file():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    # A folder that the linter does not see cannot break a contract: through the links it sees all of them.
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")] + [*(ROOT / "toushi").glob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files}
    names = {name if name.split(".")[0] == "toushi" else f"toushi.{name}" for name in names}
    assert grimp.build_graph("toushi", cache_dir=None).modules == names
