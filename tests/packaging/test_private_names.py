"""Private names of other libraries stand in two modules only, each with a test of what stops working without them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("toushi/cli", "hooks", "probe", "experiments", "reports", "dashboards")
HOMES = ("hooks/torch_private.py", "probe/pipelines/private_api.py")
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples, whose fields could have any other name
PUBLIC |= {"_exit"}  # of os


def private_names(tree: ast.AST) -> set[str]:
    """Attributes with a leading underscore that are asked of anything but `self` and `cls`, by a dot or by getattr."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = node.value
            if not (isinstance(base, ast.Name) and base.id in ("self", "cls")):
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            found |= {one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("toushi"):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - PUBLIC


def own_names(tree: ast.AST) -> set[str]:
    """Private functions, and attributes of `self`, that a file of ours defines."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(node.attr)
    return found


def test_private_names_stand_in_two_modules():
    files = {
        file: ast.parse(file.read_text(encoding="utf-8")) for name in FOLDERS for file in (ROOT / name).rglob("*.py")
    }
    assert len(files) > 150
    own = set().union(*map(own_names, files.values()))
    found = {
        str(file.relative_to(ROOT)): names
        for file, tree in files.items()
        if (names := private_names(tree) - own) and str(file.relative_to(ROOT)) not in HOMES
    }
    assert not found


def test_the_check_finds_what_it_is_for():
    planted = "torch._fused_sdp_choice(q)\ngetattr(model, '_execution_device', None)\nfrom diffusers.x import _Registry"
    assert private_names(ast.parse(planted)) == {"_fused_sdp_choice", "_execution_device", "_Registry"}
