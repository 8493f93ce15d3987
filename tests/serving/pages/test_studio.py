"""The studio in a browser, before a real server."""

import base64
import io
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from browsers import CHROMIUM, LEFT_OUT
from PIL import Image
from served import Live, live, live_asgi
from shared import TIMEOUT
from starlette.applications import Starlette
from starlette.routing import Mount
from walks import StepGate

from artifex.generative_models.inference import InferencePipeline
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.serving import create_app

if CHROMIUM is None:
    pytest.skip(LEFT_OUT, allow_module_level=True)

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

Open = Callable[..., Page]

expect.set_options(timeout=1e3 * TIMEOUT)

STILL = {"reduced_motion": "reduce"}
GPT2 = Path(__file__).parent.parent.parent / "golden" / "gpt2"


@pytest.fixture(scope="module")
def server(pipeline: InferencePipeline, drawer: InferencePipeline) -> Iterator[Live]:
    models = {"tiny": pipeline, "steps": drawer, "writer": load_pipeline(GPT2, batch_size=1)}
    with live(create_app(models, max_rows=256)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser: Browser) -> BrowserContext:
    """One that stays open, in which tests open pages; a window for each would take a second each."""
    window = _in_window(browser)
    window.new_page()
    return window


def _in_window(browser: Browser, **settings: Any) -> BrowserContext:
    context = browser.new_context(**settings)
    context.set_default_timeout(1e3 * TIMEOUT)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context


@pytest.fixture
def open_page(browser: Browser, window: BrowserContext, server: Live) -> Iterator[Open]:
    """Opens the studio in a page where nothing is stored; at the end, nothing went wrong in it."""
    wrong: list[str] = []
    pages: list[Page] = []

    def note(message: Any) -> None:
        # Which browsers say of every status from 400 on, and of whatever is cut off.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    def open_page(
        fragment: str = "",
        url: str | None = None,
        path: str = "",
        ready: str = ".panel",
        media: Mapping[str, Any] = {},
        **settings: Any,
    ) -> Page:
        page = (_in_window(browser, **settings) if settings else window).new_page()
        page.emulate_media(**media)
        pages.append(page)
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{url or server.url}/{path}#{fragment}")
        page.wait_for_selector(ready)
        return page

    yield open_page
    blank, *opened = window.pages
    for page in opened:
        page.close()
    window.new_cdp_session(blank).send("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
    for page in pages:
        if page.context is not window:
            page.context.close()
    assert wrong == []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[StepGate]:
    gate = StepGate(monkeypatch)
    yield gate
    gate.release()


def field(page: Page, name: str) -> Locator:
    return page.locator(f"[data-field={name}]")


def shown(page: Page, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "images => images.map((image) => image.src)")


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(int)


def picture_in(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def upload(number: int, size: int = 32) -> dict[str, Any]:
    """A picture file of a size that no model has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"name": f"{number}.png", "mimeType": "image/png", "buffer": file.getvalue()}


def data_url(file: dict[str, Any]) -> str:
    return f"data:image/png;base64,{base64.b64encode(file['buffer']).decode()}"


def drawn(server: Live, model: str, **body: Any) -> list[str]:
    answer = server.client.post(f"/v2/models/{model}/generate", json={**body, "pictures": "png"})
    return answer.raise_for_status().json()["x"]


def draw(page: Page, **fields: object) -> None:
    for name, value in fields.items():
        field(page, name).fill(str(value))
    page.click(".run")
    expect(page.locator("progress")).to_be_hidden()


def test_draws_with_previews(server: Live, open_page: Open, gate: StepGate):
    page = open_page("steps/generate")
    for name, value in {"num_samples": 2, "num_steps": 8, "seed": 7, "label": 2}.items():
        field(page, name).fill(str(value))
    gate.hold()
    page.click(".run")
    expect(page.get_by_role("status").filter(has_text="Drawing 2 pictures")).to_be_visible()
    gate.wait(1)
    gate.release(4)
    expect(page.locator(".preview img").first).to_have_attribute("data-step", re.compile(r"^[1-9]$"))
    expect(page.get_by_role("progressbar")).to_have_attribute("value", re.compile("."))
    gate.release()
    expect(page.locator("progress")).to_be_hidden()
    expect(page.locator(".preview")).to_have_count(0)
    expect(page.get_by_role("status").filter(has_text="seed 7")).to_be_visible()
    wanted = drawn(server, "steps", num_samples=2, num_steps=8, seed=7, label=2)
    for url, other in zip(shown(page, ".grid img"), wanted, strict=True):
        np.testing.assert_allclose(pixels(url), pixels(other), atol=1)  # of other widths of the batch
    expect(page.locator(".grid img").first).to_have_class("pixelated")


def test_writes(server: Live, open_page: Open):
    page = open_page("writer/generate")
    page.fill("[data-field=prompt]", "Zwölf Boxkämpfer, it's")
    draw(page, num_tokens=12, num_samples=2, seed=7)
    expect(page.locator(".writing")).to_have_count(2)
    request = {"prompt": "Zwölf Boxkämpfer, it's", "num_tokens": 12, "num_samples": 2, "seed": 7}
    wanted = server.client.post("/v2/models/writer/generate", json=request).json()["text"]
    assert page.locator(".writing").all_text_contents() == wanted
    page.click(".copy")
    assert page.evaluate("navigator.clipboard.readText()") == "\n\n".join(wanted)
    page.fill("[data-field=prompt]", "A " * 60)
    page.click(".run")
    expect(page.locator(".error")).to_contain_text("prompt: expected at most 47 tokens")


def test_another_seed_each_time_unless_it_is_kept(open_page: Open):
    page = open_page("tiny/generate")
    seeds = []
    for keep in (False, False, True, True):
        page.get_by_label("Keep seed").set_checked(keep)
        draw(page)
        seeds.append(field(page, "seed").input_value())
    assert seeds[1:] == [seeds[1]] * 3
    assert seeds[0] != seeds[1]
    page.get_by_role("button", name="Another seed").click()
    assert field(page, "seed").input_value() != seeds[1]


def test_cancels(open_page: Open, gate: StepGate):
    page = open_page("steps/generate")
    field(page, "num_samples").fill("1")
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    gate.hold()
    page.click(".run")
    gate.wait(1)
    with page.expect_event("requestfailed") as failed:
        page.get_by_role("button", name="Cancel").click()
    assert failed.value.url.endswith("generate_stream")
    expect(page.locator(".report .status")).to_have_text("Cancelled.")
    expect(page.locator(".gallery")).to_be_hidden()
    gate.release()
    draw(page)
    expect(page.locator(".item")).to_have_count(1)


def test_a_value_that_cannot_be_has_the_servers_words(server: Live, open_page: Open):
    page = open_page("steps/generate")
    draw(page, num_steps=99999)
    wanted = server.client.post("/v2/models/steps/generate", json={"num_steps": 99999}).json()["error"]
    expect(page.locator(".actions").get_by_role("alert")).to_have_text(wanted)
    draw(page, num_steps=2)
    expect(page.locator(".actions .error")).to_have_text("")


def give(page: Page, event: str, file: dict[str, Any], selector: str = "body") -> None:
    """Drops or pastes a file."""
    script = """([event, selector, content]) => {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "a.png", { type: "image/png" }));
        const settings = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
        const made = event === "paste" ? new ClipboardEvent(event, settings) : new DragEvent(event, settings);
        document.querySelector(selector).dispatchEvent(made);
    }"""
    page.evaluate(script, [event, selector, base64.b64encode(file["buffer"]).decode()])


def test_reconstructs_pictures_that_are_chosen_dropped_and_pasted(server: Live, open_page: Open):
    page = open_page("tiny/reconstruct")
    page.click(".run")
    expect(page.locator(".report .status")).to_have_text("Give it a picture first.")
    ways: list[Callable[[dict[str, Any]], object]] = [
        lambda file: page.set_input_files("input[type=file]", file),
        lambda file: give(page, "drop", file, ".zone"),
        lambda file: give(page, "paste", file),
    ]
    for number, way in enumerate(ways):
        file = upload(number)
        (wanted,) = drawn(server, "tiny.reconstruct", x=data_url(file), resize=True)
        way(file)
        expect(page.locator(".result img")).to_have_attribute("src", wanted)
        expect(page.locator(".zone img")).to_have_attribute("src", data_url(file))


def test_what_is_no_picture_is_refused(open_page: Open):
    page = open_page("tiny/reconstruct")
    file = {"name": "a.png", "mimeType": "image/png", "buffer": b"none"}
    page.set_input_files("input[type=file]", file)
    expect(page.locator(".upload .error")).to_have_text("a.png is no picture that this browser can read.")


def test_a_picture_that_only_the_browser_reads_is_drawn_for_the_server(open_page: Open):
    page = open_page("tiny/reconstruct")
    sign = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="5"/></svg>'
    page.set_input_files("input[type=file]", {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": sign})
    expect(page.locator(".result img")).to_have_attribute("src", re.compile("^data:image/png"))


def test_numbers_are_shown_as_json(server: Live, open_page: Open):
    page = open_page("tiny/encode")
    file = upload(3)
    page.set_input_files("input[type=file]", file)
    numbers = page.locator(".numbers")
    expect(numbers).to_contain_text('"mean": [')
    body = {"x": data_url(file), "resize": True}
    answer = server.client.post("/v2/models/tiny.encode/generate", json=body).json()
    mean = re.search(r'"mean": \[(.*?)\]', numbers.text_content() or "")
    np.testing.assert_allclose([float(n) for n in mean[1].split(",")], answer["mean"][0], rtol=1e-2)  # type: ignore[index]


def test_interpolates_by_latents(server: Live, open_page: Open):
    page = open_page("tiny/interpolate", media=STILL)
    files = [upload(1), upload(2)]
    field(page, "frames").fill("5")
    for number, file in enumerate(files):
        page.locator("input[type=file]").nth(number).set_input_files(file)
    scrub = page.get_by_role("slider", name="Frame", exact=True)
    expect(scrub).to_have_attribute("max", "4")
    ends = []
    for key in ("Home", "End"):
        scrub.press(key)
        ends += shown(page, ".player img")
    expect(page.locator(".where")).to_have_text("100 %")
    wanted = drawn(server, "tiny.reconstruct", x=[data_url(file) for file in files], resize=True)
    for url, other in zip(ends, wanted, strict=True):
        np.testing.assert_allclose(pixels(url), pixels(other), atol=1)  # of other sizes of the batch
    assert (pixels(ends[0]) != pixels(ends[1])).any()


def test_interpolates_by_an_endpoint_that_does(open_page: Open):
    page = open_page("steps/interpolate", media=STILL)
    for name, value in {"frames": 3, "num_steps": 2}.items():
        field(page, name).fill(str(value))
    for number in range(2):
        give(page, "paste", upload(number, 4))
        expect(page.locator(".zone.filled")).to_have_count(number + 1)
    scrub = page.get_by_role("slider", name="Frame", exact=True)
    expect(scrub).to_have_attribute("max", "2")
    scrub.press("End")
    last = shown(page, ".player img")
    scrub.press("Home")
    expect(page.locator(".where")).to_have_text("0 %")
    assert shown(page, ".player img") != last


def test_walks_through_latents(open_page: Open):
    page = open_page("tiny/walk", media=STILL)
    draw(page, stops=3, frames=4, seed=5)
    scrub = page.get_by_role("slider", name="Frame", exact=True)
    expect(scrub).to_have_attribute("max", "11")
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # motion only for who wants it
    (first,) = shown(page, ".player img")
    scrub.press("ArrowRight")
    expect(page.locator(".where")).to_have_text("2 of 12")
    (second,) = shown(page, ".player img")
    assert second != first
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".where")).not_to_have_text("2 of 12")
    page.get_by_role("button", name="Pause").click()
    scrub.press("Home")
    draw(page, seed=5)
    assert shown(page, ".player img") == [first]  # the same seed is the same walk
    draw(page, seed=6)
    assert shown(page, ".player img") != [first]


def test_the_walk_plays_by_itself(open_page: Open):
    page = open_page("tiny/walk")
    draw(page, stops=2, frames=2)
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_commands_of_the_gallery_draw_the_same(open_page: Open, tmp_path: Path):
    page = open_page("tiny/generate")
    draw(page, num_samples=1, seed=11, temperature=0.5)
    (picture,) = shown(page, ".item img")
    item = page.locator(".item")
    commands = {}
    for kind in ("curl", "Python"):
        item.get_by_role("button", name=f"Copy as {kind}").click()
        expect(page.locator(".gallery .status")).to_contain_text("copied")
        commands[kind] = page.evaluate("navigator.clipboard.readText()")
        expect(page.locator(".gallery .status")).to_contain_text(kind)
    subprocess.run(["sh", "-ec", commands["curl"]], cwd=tmp_path, timeout=TIMEOUT, check=True)
    made = tmp_path / "tiny-11.png"
    np.testing.assert_array_equal(picture_in(made), pixels(picture))
    made.unlink()
    run = forked.run(["-c", f"import os; os.chdir({str(tmp_path)!r})\n{commands['Python']}"], timeout=TIMEOUT)
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(picture_in(made), pixels(picture))


def test_the_gallery_outlives_the_page(open_page: Open, tmp_path: Path):
    page = open_page("tiny/generate")
    draw(page, num_samples=3, seed=12, temperature=0.25)
    pictures = shown(page, ".item img")
    assert len(pictures) == 3
    field(page, "temperature").fill("1")
    page.reload()
    page.wait_for_selector(".item")
    assert shown(page, ".item img") == pictures
    page.locator("[data-activity=walk]").click()
    page.get_by_role("button", name="Reuse its fields").click()
    values = {name: field(page, name).input_value() for name in ("num_samples", "seed", "temperature")}
    assert values == {"num_samples": "3", "seed": "12", "temperature": "0.25"}
    assert page.get_by_label("Keep seed").is_checked()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "tiny-12.png"
    download.value.save_as(tmp_path / "saved.png")
    assert picture_in(tmp_path / "saved.png").shape[:2] == (18, 18)  # two by two, with a gap
    draw(page)
    page.get_by_role("button", name="Remove from the gallery").first.click()
    expect(page.locator(".item")).to_have_count(1)
    page.get_by_role("button", name="Remove all").click()
    page.reload()
    page.wait_for_selector(".panel")
    expect(page.locator(".item")).to_have_count(0)


def test_a_browser_without_room_says_so(open_page: Open):
    page = open_page("tiny/generate")
    draw(page, num_samples=1)
    page.evaluate("""() => {
        const room = JSON.stringify(localStorage).length + 100;
        const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (name, value) {
            if (value.length > room) throw new DOMException("full", "QuotaExceededError");
            set.call(this, name, value);
        };
    }""")
    draw(page, num_samples=1)
    expect(page.locator(".gallery .status")).to_have_text("No room for more: the oldest one is gone.")
    expect(page.locator(".item")).to_have_count(1)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('none'); }; }")
    draw(page, num_samples=1)
    expect(page.locator(".gallery .status")).to_contain_text("it is gone when you leave")
    expect(page.locator(".item")).to_have_count(1)


def test_a_live_slider_draws_again_with_the_same_seed(open_page: Open):
    page = open_page("tiny/generate")
    page.get_by_label("Live").check()
    expect(page.locator(".item")).to_have_count(1)
    seed = field(page, "seed").input_value()
    with page.expect_request(re.compile("generate_stream")) as asked:
        page.get_by_role("slider", name="temperature").press("End")
    assert asked.value.post_data_json["seed"] == int(seed)
    assert asked.value.post_data_json["temperature"] == 4
    expect(page.locator(".item dl")).to_contain_text("temperature4")  # in place of what it drew before
    expect(page.locator(".item")).to_have_count(1)


def test_a_newer_change_takes_the_place_of_what_is_drawn(open_page: Open, gate: StepGate):
    page = open_page("steps/generate")
    page.get_by_label("Live").check()
    expect(page.locator(".item")).to_have_count(1)
    gate.hold()
    num_steps = page.get_by_role("slider", name="num_steps")
    seen = len(gate.seen)
    num_steps.press("ArrowRight")
    gate.wait(seen + 1)
    with page.expect_event("requestfailed"):
        num_steps.press("ArrowRight")
    gate.release()
    expect(page.locator(".item dl")).to_contain_text("num steps5")


def test_with_a_key_the_page_asks_for_it(pipeline: InferencePipeline, open_page: Open):
    with live(create_app({"tiny": pipeline}, api_key="sésame")) as server:
        page = open_page(url=server.url, ready=".key")
        assert "tiny" not in page.content()
        expect(page.get_by_label("Key")).to_be_focused()
        page.get_by_label("Key").fill("sesame")
        page.get_by_label("Key").press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not the server's key.")
        assert "tiny" not in page.content()
        page.get_by_label("Key").fill("sésame")
        page.get_by_role("button", name="Open").click()
        page.wait_for_selector(".panel")
        expect(page.locator("#models h3").first).to_have_text("tiny")
        draw(page, num_samples=1)
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator(".gallery .status")).to_contain_text("copied")
        command = page.evaluate("navigator.clipboard.readText()")
        assert '"Authorization: Bearer $ARTIFEX_API_KEY"' in command
        page.reload()
        page.wait_for_selector(".panel")  # without asking again, while the tab is open
        draw(page, num_samples=1)


def test_below_a_path_and_before_models_are_loaded(pipeline: InferencePipeline, open_page: Open):
    app = create_app({"tiny": pipeline})
    with live_asgi(Starlette(routes=[Mount("/models", app)]), lifespan=False) as server:
        page = open_page("tiny/generate", url=f"{server.url}/models")  # the first request has it load them
        draw(page)
        expect(page.locator(".item")).to_have_count(1)
        expect(page.locator("#models .READY")).to_be_visible()
        server.call(app.close())
        page.click(".run")
        expect(page.locator(".actions").get_by_role("alert")).to_contain_text("drains")
        expect(page.locator(".notice")).to_contain_text("takes no more requests")


def test_a_server_that_cannot_be_reached_is_asked_again(server: Live, open_page: Open):
    page = open_page()
    page.route("**/models.json", lambda route: route.abort(), times=1)
    page.reload()
    expect(page.locator(".notice")).to_contain_text("cannot be reached")
    page.wait_for_selector(".panel")
    expect(page.locator(".notice")).to_be_hidden()


ACTIVITIES = ["tiny/generate", "tiny/reconstruct", "tiny/interpolate", "tiny/walk", "steps/generate"]


def test_it_fits_a_phone(open_page: Open):
    page = open_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    for activity in ACTIVITIES:
        model, name = activity.split("/")
        page.get_by_label("Model").select_option(model)
        page.locator(f"[data-activity={name}]").tap()
        if name in ("generate", "walk"):
            draw(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(("scheme", "is_dark"), [("dark", True), ("light", False)])
def test_colours_are_those_of_the_reader(open_page: Open, scheme: Any, is_dark: bool):
    page = open_page(media={"color_scheme": scheme})
    for selector, is_text in (("body", False), (".stage", False), (".about", True)):
        colour = page.eval_on_selector(
            selector, f"(e) => getComputedStyle(e).{'color' if is_text else 'backgroundColor'}"
        )
        lightness = np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]])
        assert (lightness < 128) == (is_dark != is_text), (selector, colour)


def test_the_keyboard_does_it_all(open_page: Open, gate: StepGate):
    page = open_page("steps/generate")
    page.get_by_label("Model").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.field || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        if "primary run" in reached:
            break
    assert {"num_samples", "num_steps", "sampler", "seed", "primary run"} <= reached
    gate.hold()
    field(page, "num_steps").press("Control+Enter")
    gate.wait(1)
    page.keyboard.press("Escape")
    expect(page.locator(".report .status")).to_have_text("Cancelled.")


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_every_control_has_a_name(open_page: Open, activity: str):
    page = open_page(activity)
    if activity.endswith("generate"):
        draw(page)
    nameless = page.eval_on_selector_all(
        "input, select, textarea, button",
        """(all) => all.filter((one) => {
            const label = one.labels?.length ? one.labels[0].textContent : "";
            return !(one.getAttribute("aria-label") || label || one.textContent).trim();
        }).map((one) => one.outerHTML)""",
    )
    assert nameless == []


def test_documentation_is_a_page_of_the_same_policy(open_page: Open):
    page = open_page(path="docs", ready="table")
    expect(page.get_by_role("heading", name="API")).to_be_visible()
