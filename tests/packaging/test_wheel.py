"""The wheel holds what the package needs, and works beside a user's files of the same names as our folders."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("toushi", "hooks", "probe", "experiments", "reports", "dashboards")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
USERS = {
    "probe.py": "raise ImportError('the probe.py of the user was imported')",
    "hooks.py": "raise ImportError('the hooks.py of the user was imported')",
    "reports.py": "raise ImportError('the reports.py of the user was imported')",
    "experiments/__init__.py": "raise ImportError('the experiments of the user were imported')",
    "dashboards/__init__.py": "raise ImportError('the dashboards of the user were imported')",
}


def source_files() -> list[str]:
    """Paths of the files of this repository, those not yet committed too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built from a copy, so that no leftover of an older build gets in."""
    home = tmp_path_factory.mktemp("build")
    for name in source_files():
        (home / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, home / "source" / name, follow_symlinks=False)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(home)!r})"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        home,
        ".",
    ]
    for command in (pip, [sys.executable, "-c", build]):
        done = subprocess.run(command, cwd=home / "source", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return home


def wheel_names(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_file_of_the_package(built):
    names = {name for name in wheel_names(built) if ".dist-info/" not in name}
    links = {name for name in source_files() if (ROOT / name).is_symlink()}
    expected = {name for name in source_files() if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))} - links
    expected = {name if name.startswith("toushi/") else f"toushi/{name}" for name in expected}
    expected = {name for name in expected if not re.fullmatch(r"toushi/experiments/results/.*\.pdf", name)}
    fonts = {name.replace("probe/figures/fonts", "dashboards/static") for name in expected if "/fonts/" in name}
    assert "toushi/py.typed" in expected and len(fonts) > 3
    assert names == expected | fonts


def test_the_wheel_has_one_top_level_name_and_the_licenses(built):
    names = wheel_names(built)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"toushi"}
    licenses = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licenses == {
        "LICENSE",
        "toushi/experiments/scene_world/sprites/LICENSE",
        "toushi/probe/figures/fonts/OFL-NotoEmoji.txt",
        "toushi/probe/figures/fonts/OFL-NotoSansSC.txt",
        "toushi/probe/figures/fonts/OFL-ToushiRareHan.txt",
    }


def test_the_sdist_holds_the_same_files_and_no_link(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive if not member.isdir()}
    assert all(member.isfile() and not member.islnk() for member in members.values())
    package = {name for name in members if name.startswith("toushi/")}
    assert package == {name for name in wheel_names(built) if ".dist-info/" not in name}
    assert not {name for name in members if name.startswith(("tests/", "benchmarks/"))}


# --- installed, beside a user's files ---


@pytest.fixture(scope="module")
def bin_folder(built, tmp_path_factory) -> Path:
    """The programs of a new environment with the wheel. It sees the libraries of this one, but not this repository:
    of a folder that a .pth file names no further .pth file is read, so that no editable install gets in."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    here = home / ("Scripts" if os.name == "nt" else "bin")
    python = here / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    (packages / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return here


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A user's folder, with modules and packages that are called like our folders."""
    home = tmp_path_factory.mktemp("user")
    for name, code in USERS.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(code)
    return home


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def output(command, folder: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_package_is_that_of_the_wheel(bin_folder, user):
    where = output([bin_folder / "python", "-c", "import toushi; print(toushi.__file__)"], user).strip()
    assert Path(where).is_relative_to(bin_folder.parent) and output([bin_folder / "toushi", "--version"], user)


@pytest.mark.slow
def test_the_first_example_of_the_readme(bin_folder, user):
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert example is not None
    (user / "example.py").write_text(example[1], encoding="utf-8")
    output([bin_folder / "python", "example.py"], user)
    assert list(user.glob("runs/*/manifest.json"))


@pytest.fixture(scope="module")
def trace(bin_folder, user) -> Path:
    output([bin_folder / "toushi", "trace", "左边是猫", "--steps", "2", "--out", "traced"], user)
    return user / "traced"


@pytest.mark.slow
def test_trace(trace):
    assert {"manifest.json", "image.png", "words.png"} <= {file.name for file in trace.iterdir()}


@pytest.mark.slow
def test_xarray_opens_it(bin_folder, trace):
    code = "import xarray; print(*xarray.open_datatree('traced', engine='toushi').children)"
    nodes = output([bin_folder / "python", "-c", code], trace.parent).split()
    assert {"unet.middle.cross_attention", "encoder"} <= set(nodes)


@pytest.mark.slow
def test_view(bin_folder, user, trace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [bin_folder / "toushi", "view", trace, "--headless", "--port", port]
    address, log = f"http://127.0.0.1:{port}", user / "view.log"
    with log.open("wb") as file:
        server = subprocess.Popen(list(map(str, command)), cwd=user, env=environment(), stdout=file, stderr=file)
    try:
        page = wait_for(address, server)
        font = wait_for(f"{address}/app/static/NotoSansSC-Regular.subset.ttf", server)
        open_in_browser(address)
    finally:
        server.terminate()
        server.wait(30)
    assert b"<title>" in page and len(font) > 1_000_000
    assert "Traceback" not in log.read_text(encoding="utf-8")


def open_in_browser(address: str) -> None:
    """Waits until the explorer shows the trace, if this machine has a browser; `make test` installs one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        assert not os.environ.get("CI"), "there is no chromium on this machine. On Debian: apt-get install chromium"
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=FLAGS) as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector(".toushi[data-ready]", timeout=120_000)


def wait_for(address: str, server: subprocess.Popen) -> bytes:
    """What the server answers, once it does."""
    for _ in range(600):
        assert server.poll() is None, f"{shlex.join(server.args)} ended with {server.returncode}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {address}")


@pytest.mark.slow
def test_run_with_two_processes(bin_folder, user):
    quick = ["scenes=6", "shuffles=2", "resamples=10"]
    said = output([bin_folder / "toushi", "run", "bilingual", "--jobs", "2", "--set", *quick, "--out", "study"], user)
    assert "jobs      2 done" in said and (user / "study/tables/layers.csv").is_file()
