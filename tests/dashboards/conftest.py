"""The app without a browser."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from toushi import dashboards

APP = Path(dashboards.__file__).parent / "app.py"


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
