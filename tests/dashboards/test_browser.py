"""The explorer in a real browser: the map that is drawn is the map that is stored, and nothing waits for the server."""

import numpy as np
import pytest
from browser_page import HALF, choose, coloured, drawn, opened

from toushi.probe.trace.open import open_trace


def test_the_map_drawn_is_the_map_stored(page, trace):
    opened(page)
    choose(page, word="猫")
    values, _, (low, high), data = drawn(page)
    assert data["word"] == "猫" and low == 0
    np.testing.assert_allclose(values, trace.heat_map("猫"), **HALF)

    page.get_by_role("button", name="深色").click()  # opaque throughout, so that the pixels can be compared
    values, pixels, (low, high), _ = drawn(page)
    assert np.abs(pixels[..., :3] - coloured(values, low, high)).max() <= 1 and (pixels[..., 3] == 255).all()

    page.locator("input.step").fill("5")
    values, pixels, (low, high), data = drawn(page)
    assert data["step"] == "5"
    np.testing.assert_allclose(values, trace.heat_map("猫", steps=4), **HALF)
    assert np.abs(pixels[..., :3] - coloured(values, low, high)).max() <= 1

    # One scale for all words and steps: its end is their largest value.
    highest = max(float(trace.heat_map(w, steps=s).max()) for w in trace.words() for s in trace.steps)
    assert high == pytest.approx(highest, rel=1e-3)

    page.locator(".thumb[title^='unet.down.1']").click()
    page.locator(".heads .thumb[data-slot='2']:visible").click()
    page.mouse.move(2, 2)
    values, _, _, data = drawn(page)
    site = "unet.down.1.cross_attention"
    kept = trace.attention("猫", sites=site, steps=4, grid="native")[site].isel(step=0, head=1)
    assert data["head"] == "2"
    np.testing.assert_allclose(values, kept, **HALF)

    page.get_by_role("button", name="单图").click()
    assert drawn(page)[2] == pytest.approx([float(kept.min()), float(kept.max())], rel=1e-3)
    assert not page.sent, "scrubbing must not ask the server"


def test_keys_play_and_the_curve(page, trace):
    opened(page)
    choose(page, word="月亮")
    page.locator(".stage .frame").first.click()
    for key, step in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1"), ("0", "0")):
        page.keyboard.press(key)
        assert drawn(page)[3]["step"] == step
    page.keyboard.press("ArrowDown")
    assert drawn(page)[3]["layer"] == "1"
    page.keyboard.press("p")
    page.wait_for_timeout(1200)
    page.keyboard.press("p")
    assert int(drawn(page)[3]["step"]) >= 1
    area = page.locator(".plot").bounding_box()
    page.mouse.move(area["x"] + area["width"] - 1, area["y"] + 20)
    assert drawn(page)[3]["step"] == str(len(trace.steps)), "pointing at the curve shows that step"
    assert not page.sent


def test_hover_and_box_tell_the_numbers(page, trace):
    opened(page)
    choose(page, word="猫")
    area = page.locator(".stage .frame").first.bounding_box()

    def at(y, x):
        return area["x"] + area["width"] * (x + 0.5) / 16, area["y"] + area["height"] * (y + 0.5) / 16

    page.mouse.move(*at(9, 4))
    values = drawn(page)[0]
    tip = page.locator(".stage .tip").first
    assert float(tip.get_attribute("data-value")) == pytest.approx(values[9, 4])
    assert "y 9，x 4" in tip.inner_text()

    page.mouse.move(*at(7, 2))
    page.mouse.down()
    page.mouse.move(*at(8, 3))
    page.mouse.move(*at(11, 6))
    page.mouse.up()
    page.mouse.move(2, 2)
    drawn(page)
    box = trace.heat_map("猫").values[7:12, 2:7].mean()
    rows = [
        (row.locator(".name").inner_text(), float(row.get_attribute("data-share")))
        for row in page.locator(".row").all()
    ]
    assert dict(rows)["猫"] == pytest.approx(box, rel=2e-3)
    fed = [share for name, share in rows if name.partition("#")[0] in "左边是猫右边月亮夜晚"]
    assert fed == sorted(fed, reverse=True), "the word that fed the box most comes first"
    assert sum(share for _, share in rows) == pytest.approx(1, abs=5e-3), (
        "words, punctuation and special tokens are the whole"
    )


def test_two_words_side_by_side_and_the_other_language(page, trace):
    opened(page)
    choose(page, word="猫")
    page.get_by_role("button", name="两词对比").click()
    choose(page, word="月亮")
    for stage, word in enumerate(("猫", "月亮")):
        values, _, scale, data = drawn(page, stage)
        assert data["word"] == word
        np.testing.assert_allclose(values, trace.heat_map(word), **HALF)
    assert scale == drawn(page, 0)[2], "both on one scale"
    page.get_by_text("English", exact=True).click()
    page.get_by_role("button", name="Compare two words").wait_for()
    assert drawn(page, 1)[3]["word"] == "月亮", "a change of language keeps what was chosen"
    assert page.locator(".frame img").first.get_attribute("alt") == f"Picture made from the prompt: {trace.prompt}"


def test_the_text_page(page, trace):
    opened(page, "/encoder")
    page.locator(".thumb[title='第 3 层']").click()
    page.mouse.move(2, 2)
    page.locator(".token[title^='猫 ']").click()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    values = page.locator(".matrix canvas").evaluate("(canvas) => [...canvas.drawn.values]")
    kept = trace.encoder_attention(2).mean("head")
    np.testing.assert_allclose(np.reshape(values, kept.shape), kept, **HALF)
    names = page.locator(".left-names span").all_inner_texts()
    assert names == [token.text for token in trace.tokens()]
    page.locator(".token[title^='猫 ']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("]")
    page.wait_for_selector(".toushi[data-layer='3'][data-head='1']")
    assert not page.sent
    page.get_by_text("English", exact=True).click()
    page.locator(".thumb[title='layer 4'][aria-pressed='true']").wait_for()
    page.wait_for_selector(".toushi[data-layer='3'][data-head='1']")


def test_the_film_shows_the_steps_and_the_map_can_be_hidden(page, trace):
    opened(page)
    assert page.locator(".film").count() == 2, "what the model sees, and what it expects"
    frames = page.locator(".film").nth(1).locator("canvas")
    assert frames.count() == len(trace.steps)
    seen = frames.nth(2).evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    kept = trace.preview(trace.steps[2])
    assert np.array_equal(np.reshape(seen, (*kept.shape[:2], 4))[..., :3], kept), "the film is the stored previews"
    noise = page.locator(".film").nth(0).locator("canvas").first
    assert noise.evaluate("(c) => [c.height, c.width]") == list(trace.latent(0).shape[1:]), "a pixel for each cell"
    page.get_by_role("button", name="模型看到的").click()
    page.locator("input.step").fill("1")
    drawn(page)
    paints = "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    assert page.locator("canvas.preview").first.evaluate(paints) == noise.evaluate(paints)
    area = frames.nth(2).bounding_box()
    page.mouse.click(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    page.mouse.move(2, 2)
    assert drawn(page)[3]["step"] == "3"
    page.locator("input.step").focus()
    page.keyboard.press("m")
    drawn(page)
    assert page.locator("canvas.heat").first.evaluate("(c) => c.style.opacity") == "0"
    page.keyboard.press("M")
    drawn(page)
    assert page.locator("canvas.heat").first.evaluate("(c) => c.style.opacity") != "0"
    assert not page.sent


def test_two_traces_and_their_difference(page, trace, folder):
    opened(page, "/compare")
    page.get_by_role("combobox").nth(1).click()
    page.get_by_role("option").filter(has_text="other").click()
    page.get_by_text("种子 1 · 4 步", exact=True).wait_for()
    choose(page, word="月亮")
    other = open_trace(folder.parent / "other")
    maps = [one.heat_map("月亮") for one in (trace, other)]
    shown = [drawn(page, stage) for stage in range(3)]
    for (values, *_), kept in zip(shown, [*maps, maps[1] - maps[0]]):
        np.testing.assert_allclose(values, kept, rtol=2**-9, atol=2e-4)
    assert shown[0][2] == shown[1][2], "A and B are on one scale"
    low, high = shown[2][2]
    assert low == -high and high >= abs(maps[1] - maps[0]).max() * 0.999, "the difference's scale is signed and shared"
    page.locator("input.step").first.fill("6")
    values = drawn(page, 1)[0]
    np.testing.assert_allclose(values, other.heat_map("月亮", steps=3), **HALF)
    row = page.locator("tr[data-unit]").first
    parts = [float(row.get_attribute(f"data-{side}")) for side in "ab"]
    word = row.locator("button").inner_text()
    assert parts == pytest.approx([float(one.heat_map(word, steps=-1).mean()) for one in (trace, other)], rel=5e-3)


def test_chinese_needs_no_font_of_the_machine(page):
    opened(page)
    for family, sign in (("Toushi Sans SC", "猫"), ("Toushi Emoji", "🐱"), ("Toushi Rare Han", "𪚥")):
        loaded = page.evaluate("([f, c]) => document.fonts.load(`16px '${f}'`, c).then((all) => all.map((a) => a.status))",
                               [family, sign])  # fmt: skip
        assert loaded == ["loaded"], f"the server must have {family}"
    for place in (".toushi", "[data-testid=stApp]"):
        assert "Toushi Sans SC" in page.locator(place).first.evaluate("(e) => getComputedStyle(e).fontFamily")


def test_a_trace_is_one_page_that_needs_no_network(chromium, folder, trace, tmp_path):
    from toushi import main

    assert main(["export", str(folder), "--to", "html", "--language", "zh", "--out", str(tmp_path / "cat.html")]) == 0
    assert (tmp_path / "cat.html").stat().st_size < 5e6
    page = chromium.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{tmp_path / 'cat.html'}")
    page.wait_for_selector(".toushi[data-ready]")
    page.keyboard.press("0")
    for _ in range(5):
        page.keyboard.press("ArrowRight")  # the keys work without a click
    choose(page, word="猫")
    values, _, _, data = drawn(page)
    assert data["step"] == "5" and data["word"] == "猫"
    np.testing.assert_allclose(values, trace.heat_map("猫", steps=4), **HALF)
    assert set(asked) <= {"file", "blob", "data"} and not errors
    load = "() => document.fonts.load(`16px 'Noto Sans SC'`, '猫').then((all) => all.map((font) => font.status))"
    assert page.evaluate(load) == ["loaded"]  # 汉字 need no font of the machine
    page.close()
