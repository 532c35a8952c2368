"""The app without a browser, and in one."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from toushi import dashboards
from toushi.probe.trace.open import open_trace

APP = Path(dashboards.__file__).parent / "app.py"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def app(tmp_path, monkeypatch):
    """The app started in an empty folder, in English."""
    monkeypatch.chdir(tmp_path)

    def start(folder=None, page=None, locale="en-GB", **query):
        test = AppTest.from_file(str(APP), default_timeout=120)
        test.context = {"locale": locale}
        test.query_params.update(query)
        if folder is not None:
            test.session_state["folder"] = str(folder)
        test.run()
        if page is not None:
            test.switch_page(page).run()
        assert not test.exception
        return test

    return start


# --- a browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recorded run: random weights, but the real model, recorder and writer."""
    import torch

    from toushi.probe.models.mini_unet import MiniUNet
    from toushi.probe.recording.record import record

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("explorer") / "runs" / "cat"
    model = MiniUNet.tiny()
    with record(model, folder):
        model.sample("左边是猫，右边是月亮，夜晚", steps=6, seed=0)
    with record(model, folder.parent / "other"):
        model.sample("左边是猫，右边是月亮，夜晚", steps=4, seed=1)
    with record(model, folder.parent / "one word", words=["猫"], keep="mean"):
        model.sample("左边是猫，右边是月亮", steps=2, seed=0)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def trace(folder):
    return open_trace(folder)


@pytest.fixture(scope="module")
def chromium():
    """A browser context in Chinese, as large as a laptop's screen; its cache serves all tests."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        message = "THE BROWSER TEST DID NOT RUN: no chromium on this machine. On Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="zh-CN")
        yield context
        browser.close()


@pytest.fixture(scope="module")
def server(folder, chromium):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = APP.parents[2]  # that holds the package
    log = folder.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", APP, f"--server.port={port}", "--server.headless=true", "--", folder],
            cwd=folder.parent.parent, env={**os.environ, "PYTHONPATH": str(root)}, stdout=output, stderr=output,
        )  # fmt: skip
    address = f"http://localhost:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def page(server, chromium):
    """A page that counts what it sends to the server, and fails on any error in its scripts."""
    page = chromium.new_page()
    page.set_default_timeout(30_000)
    page.sent, errors = [], []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: page.sent.append(frame)))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.address = server
    yield page
    page.close()
    assert not errors
