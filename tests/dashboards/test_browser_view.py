"""The address, the gallery and the downloads in a real browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from browser_page import choose, drawn, opened

from toushi.probe.trace.open import open_trace


def test_the_address_is_the_view(page, chromium, trace):
    opened(page)
    page.keyboard.press("ArrowRight")  # the keys work without a click
    assert drawn(page)[3]["step"] == "1"
    choose(page, word="猫")
    page.locator("input.step").fill("4")
    page.locator(".thumb[title^='unet.down.1']").click()
    page.locator(".heads .thumb[data-slot='2']:visible").click()
    area = page.locator(".stage .frame").first.bounding_box()
    corners = [(area["x"] + area["width"] * x / 8, area["y"] + area["height"] * x / 8) for x in (1.5, 3.5)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=3)
    page.mouse.up()
    page.mouse.move(2, 2)
    page.wait_for_function("location.search.includes('box')")
    page.wait_for_timeout(300)
    assert not page.sent, "writing the address must not ask the server"
    named = page.evaluate("() => [...new URLSearchParams(location.search)]")
    site = "unet.down.1.cross_attention"
    wanted = {
        "trace": str(trace.folder),
        "lang": "zh",
        "word": "猫",
        "step": "4",
        "layer": site,
        "head": "2",
        "box": "1,1,4,4",
    }
    assert wanted.items() <= dict(named).items()
    before, box = drawn(page)[3], page.locator(".box").first.get_attribute("style")
    pasted = chromium.new_page()
    pasted.goto(page.url.replace("lang=zh", "lang=en"))
    for again in (pasted, page):
        again.reload()
        again.wait_for_selector(".toushi[data-ready]")
        assert drawn(again)[3] == before and again.locator(".box").first.get_attribute("style") == box
    assert pasted.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    pasted.close()


def test_the_difference_of_the_branches(page, trace):
    opened(page, "/?branch=difference")
    page.locator(".chip").get_by_text("<bos>", exact=True).click()
    page.mouse.move(2, 2)
    means = [trace.attention(branch=branch).mean("head").mean("step").mean("layer") for branch in ("cond", "uncond")]
    maps = [mean.sel(token=0) for mean in means]
    shown = [drawn(page, stage)[0] for stage in range(3)]
    for values, kept in zip(shown, [*maps, maps[0] - maps[1]]):
        np.testing.assert_allclose(values, kept, rtol=2**-9, atol=2e-4)
    assert page.locator(".film").count() == 1


def test_a_trace_is_deleted_after_a_question(page, folder):
    shutil.copytree(folder.parent / "other", folder.parent / "unwanted")
    page.goto(page.address + "/traces")
    page.locator("[class*='delete-runs-unwanted'] button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="保留").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    assert (folder.parent / "unwanted" / "manifest.json").exists()
    page.locator("[class*='delete-runs-unwanted'] button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="删除").click()
    page.get_by_text("runs/unwanted", exact=True).wait_for(state="hidden")
    assert not (folder.parent / "unwanted").exists() and folder.exists()


def test_a_file_is_made_when_it_is_asked_for(page, trace):
    opened(page)
    page.get_by_role("button", name="下载").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="占比与曲线").click()
    table = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert download.value.suggested_filename == "cat-shares.csv" and "猫" in table


def test_what_was_not_kept_is_a_share_of_its_own(page, folder):
    page.goto(page.address + "/traces")
    page.locator("[class*='open-runs-one-word'] button").first.click()
    page.wait_for_selector(".toushi[data-ready][data-word='猫']")
    drawn(page)
    kept = float(open_trace(folder.parent / "one word").heat_map("猫").mean())
    assert float(page.locator(".row.rest").get_attribute("data-share")) == pytest.approx(1 - kept, abs=2e-3)


def test_a_button_under_a_word_asks_the_server_once(page):
    opened(page, "/?lang=en")
    choose(page, word="月亮")
    assert page.sent == []
    page.locator(".actions [data-action=why]").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("share of attention").wait_for()
    assert "月亮" in dialog.inner_text() and len(page.sent) == 1
    page.keyboard.press("Escape")
    field = page.locator(".actions .swap")
    field.press("m")  # a key of the page elsewhere
    assert field.input_value() == "m" and page.locator(".toggle.bare").get_attribute("aria-pressed") == "false"
