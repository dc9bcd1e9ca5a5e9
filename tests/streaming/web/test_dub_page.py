"""The tab "Dub a video" in a real browser. Small programs stand for the process that does the work."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest

from benchmarks.chromium import PROGRAM, console, open_page, until
from streaming.config import DubsConfig
from streaming.server.auth import Secrets

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH"),
]

SIZES = {"mobile": [(390, 844), (844, 390)], "desktop": [(768, 1024), (1280, 860)]}
WORK = """
import json, os, shutil, sys, time
job = json.loads(sys.stdin.readline())
folder = os.path.dirname(job["video"])
def tell(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
def wait(name):
    while not os.path.exists(f"{folder}/{name}"): time.sleep(0.02)
tell("progress", stage="pictures", done=30, total=120, left_s=200.0)
tell("remark", code="cut", text="A hand hides the mouth.", at_s=1.5)
wait("go")
if sys.argv[1:]:
    tell("error", code=sys.argv[1], message=job["video"] + ": why it failed; expected something else", at_s=None)
    sys.exit(2)
shutil.copy(job["video"], job["output"])
open(job["options"]["report"], "w").write("<h1>What was done</h1>")
report = {"output": job["output"], "pictures": 120, "changed": 90, "closed": 7, "options": job["options"]}
tell("finished", report=report)
"""


def child(*arguments):
    return DubsConfig(program=(sys.executable, "-c", WORK, *arguments))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A second of VP8, which every Chromium plays, and sound."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("clip") / "my talk.webm"
    with av.open(str(path), "w") as writer:
        video, audio = writer.add_stream("libvpx", rate=25), writer.add_stream("libopus", rate=48_000)
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        for number in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((180, 320, 3), 5 * number, np.uint8), format="rgb24")
            writer.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), format="flt", layout="mono")
            sound.sample_rate = 48_000
            writer.mux(audio.encode(sound))
        writer.mux(video.encode(None))
        writer.mux(audio.encode(None))
    return path


@contextlib.asynccontextmanager
async def tab(browser, client, **options):
    async with open_page(browser, f"{client.server.url}/#dub", **options) as page:
        await until(
            page, "!document.querySelector('#dub').hidden && document.querySelector('#dub-voice').options.length"
        )
        yield page


async def go(place):
    """Let the dub that runs go on."""
    async with asyncio.timeout(60):
        while not (folders := [path.parent for path in place.glob("*/*/errors.txt")]):
            await asyncio.sleep(0.02)
    (folders[-1] / "go").touch()


async def fill(page, clip, sound):
    await page.set_input_files("#video", clip)
    await page.set_input_files("#sound", sound)


async def start(page, clip, sound):
    await fill(page, clip, sound)
    await page.evaluate("document.querySelector('#start').click()")
    await until(page, "document.querySelector('#stagetext').textContent === 'Painting mouths'")


async def test_a_video_is_uploaded_dubbed_compared_and_fetched(serving, browser, clip, speech_wav, place, engine):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        assert not engine.sessions, "the other tab opens no session meanwhile"
        await start(page, clip, speech_wav)
        work = "document.querySelector('#work').innerText"
        await until(page, f"{work}.includes('about 3 min left') && {work}.includes('A hand hides the mouth.')")
        assert await page.evaluate("document.querySelector('#progress').value") == 0.25
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")
        assert await page.evaluate("document.activeElement.textContent") == "The video is ready"
        done = await page.evaluate("document.querySelector('#done').innerText")
        assert "90 of 120 pictures have a new mouth. 7 of them are closed" in done and "A hand hides" in done
        assert "The server deletes both videos in 1 h." in done
        await until(page, "after.src.includes('/result?token=') && after.readyState >= 1")
        assert not await console(page), "nothing breaks the page's own security policy"
        async with page.expect_download() as download:
            await page.click("#download")
        assert (await download.value).suggested_filename == "my talk-dubbed.mp4"
        async with page.context.expect_page() as opened:
            await page.click("#report")
        report = await opened.value
        await report.wait_for_load_state()
        assert "What was done" in await report.content()


async def test_before_and_after_are_compared_at_the_same_place(serving, browser, clip, speech_wav, place):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        await start(page, clip, speech_wav)
        await go(place)
        await until(page, "after.src.includes('/result?token=') && after.readyState >= 1")
        await page.evaluate("document.querySelector('#after').currentTime = 1.2")
        await page.click("#show-before")
        assert await page.evaluate("!before.hidden && after.hidden && before.src.includes('/source?token=')")
        await until(page, "Math.abs(before.currentTime - 1.2) < 0.05")
        pressed = "[...document.querySelectorAll('#compare button')].map((each) => each.ariaPressed)"
        assert await page.evaluate(pressed) == ["true", "false"]
        await page.click("#show-after")
        assert await page.evaluate("before.hidden && !after.hidden")


async def test_a_reload_shows_the_dub_again_and_another_one_can_be_begun(serving, browser, clip, speech_wav, place):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        await start(page, clip, speech_wav)
        await page.reload()
        await until(page, "document.querySelector('#stagetext').textContent === 'Painting mouths'")
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")
        await page.reload()
        await until(page, "!document.querySelector('#done').hidden")
        await page.click("#again")
        assert await page.evaluate("document.activeElement.id") == "video"
        assert await page.evaluate("document.querySelector('#screen').hidden && !dubbing.hidden")
        async with asyncio.timeout(30):
            while list(place.glob("*/*")):  # the server deletes what nobody needs any more
                await asyncio.sleep(0.02)


async def test_a_text_is_spoken_and_the_options_are_sent(serving, browser, clip, place):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        await page.set_input_files("#video", clip)
        await page.check("input[value=text]")
        await page.fill("#words", "Hello to everybody.")
        await page.select_option("#dub-voice", "en-gb")
        await page.click("#more summary")
        await page.select_option("#length", "bounce")
        for name, value in {"from": "0.5", "to": "1.5", "face": "2", "mix": "18"}.items():
            await page.fill(f"#{name}", value)
        await page.click("#start")
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")
        async with client.http.get("/v1/dubs") as reply:
            (dub,) = (await reply.json())["dubs"]
        options = dub["report"]["options"]
        assert (options["length"], options["from_s"], options["to_s"], options["mix_db"]) == ("bounce", 0.5, 1.5, 18.0)


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ("", "video", "Choose the video"),
        ("video", "sound", "Choose a file with the new speech"),
        ("text", "words", "Type the words"),
        ("chinese", "words", "does not read Chinese"),
        ("from", "from", "greater than or equal to 0"),
        ("sound as video", "video", "Is no video that can be read"),
        ("video without sound", "sound", "The file holds no sound"),
        ("to", "to", "after from"),
    ],
)
async def test_a_fault_is_told_below_its_field_which_gets_the_focus(
    serving, browser, clip, speech_wav, tmp_path, change, field, said
):
    (tmp_path / "notes.txt").write_text("no sound")
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        if change:
            await page.set_input_files("#video", speech_wav if change == "sound as video" else clip)
        if change in ("from", "to", "sound as video"):
            await page.set_input_files("#sound", speech_wav)
        if change == "video without sound":
            await page.set_input_files("#sound", tmp_path / "notes.txt")
        if change in ("text", "chinese"):
            await page.check("input[value=text]")
        if change == "chinese":
            await page.fill("#words", "你好，世界")
            await page.select_option("#dub-voice", "en-us")
        if change in ("from", "to"):
            await page.evaluate(f"document.querySelector('#from').value = {-1 if change == 'from' else 3}")
            await page.evaluate(f"document.querySelector('#to').value = {2}")
        await page.evaluate("document.querySelector('#start').click()")
        error = f"document.querySelector('#{field}-error')"
        await until(page, f"!{error}.hidden")
        assert said.lower() in (await page.evaluate(f"{error}.textContent")).lower()
        assert await page.evaluate("document.activeElement.id") == field
        assert await page.evaluate(f"document.querySelector('#{field}').ariaInvalid") == "true"
        assert await page.evaluate("[...document.querySelectorAll('#dub .error')].filter((e) => !e.hidden).length") == 1


@pytest.mark.parametrize(
    ("code", "field", "said"),
    [
        ("no-face", "video", "My talk.webm: why it failed; expected something else."),
        ("clip-too-short", "length", "My talk.webm: why it failed"),
        ("dubbing", "start", "The server could not process this video"),
    ],
)
async def test_a_dub_that_fails_brings_the_form_back_with_the_reason(
    serving, browser, clip, speech_wav, place, code, field, said
):
    async with serving(dubs=child(code)) as client, tab(browser, client) as page:
        await start(page, clip, speech_wav)
        await go(place)
        await until(page, f"!document.querySelector('#{field}-error').hidden")
        assert said in await page.evaluate(f"document.querySelector('#{field}-error').textContent")
        assert await page.evaluate("!dubbing.hidden && work.hidden && video.files.length === 1"), "nothing is lost"


async def test_cancel_ends_the_dub_and_brings_the_form_back(serving, browser, clip, speech_wav, place):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        await start(page, clip, speech_wav)
        await page.click("#cancel")
        assert await page.evaluate("!dubbing.hidden && work.hidden && sound.files.length === 1")
        async with asyncio.timeout(30):
            while list(place.glob("*/*")):
                await asyncio.sleep(0.02)


async def test_files_that_are_too_large_are_told_before_the_upload(serving, browser, clip, speech_wav, place):
    async with serving(dubs=DubsConfig(max_bytes=1000)) as client, tab(browser, client) as page:
        await until(page, "performance.getEntriesByName(`${location.origin}/v1/dubs`).length === 1")
        await fill(page, clip, speech_wav)
        await page.click("#start")
        await until(page, "document.querySelector('#video-error').textContent.includes('larger than the 0 MB')")


async def test_a_full_queue_a_lost_dub_and_a_server_that_dubs_nothing_are_explained(
    serving, browser, clip, speech_wav, place
):
    said = "document.querySelector('#start-error').textContent"
    program = child().program
    async with serving(dubs=DubsConfig(program=program, waiting=0)) as client, tab(browser, client) as page:
        await start(page, clip, speech_wav)
        async with tab(browser, client) as other:
            await fill(other, clip, speech_wav)
            await other.click("#start")
            await until(other, f"{said}.startsWith('Other videos are being worked on')")
        async with client.http.get("/v1/dubs") as reply:
            (dub,) = (await reply.json())["dubs"]
        token = await page.evaluate("JSON.parse(sessionStorage.dub).token")
        headers = {"Authorization": f"Bearer {token}"}
        async with client.http.delete(dub["urls"]["self"], headers=headers) as reply:
            assert reply.status == 204
        await until(page, "!dubbing.hidden && work.hidden")
    async with serving(dubs=DubsConfig(at_once=0)) as client, tab(browser, client) as page:
        await until(page, f"{said}.includes('dubs no videos') && document.querySelector('#start').disabled")


async def test_the_key_is_asked_for_once_for_both_tabs(serving, browser, clip, speech_wav, place):
    async with serving(dubs=child(), secrets=Secrets(keys=("sesame",))) as client, tab(browser, client) as page:
        await until(page, "document.querySelector('#keys').open")
        await page.fill("#key", "sesame")
        await page.keyboard.press("Enter")
        await start(page, clip, speech_wav)
        await go(place)
        await until(page, "after.src.includes('/result?token=') && after.readyState >= 1")
        assert "sesame" not in await page.evaluate("document.querySelector('#dub').innerHTML")


async def test_the_tabs_are_chosen_by_arrow_keys_and_the_session_lives_in_one_of_them(serving, browser, engine):
    async with serving() as client, tab(browser, client) as page:
        await page.focus("#dub-tab")
        await page.keyboard.press("ArrowRight")
        await until(page, "document.querySelector('#state').textContent === 'Live'")
        assert await page.evaluate("document.activeElement.id") == "live-tab" and len(engine.sessions) == 1
        assert await page.evaluate("location.hash") == ""
        await page.keyboard.press("ArrowLeft")
        assert await page.evaluate("location.hash === '#dub' && document.querySelector('#live').hidden")
        async with asyncio.timeout(30):
            while engine.sessions:
                await asyncio.sleep(0.02)


async def test_the_tab_is_operated_by_keys_alone(serving, browser, clip, speech_wav, place):
    where = """(() => {
      const node = document.activeElement;
      const mark = getComputedStyle(node.closest(".upload") ?? node);
      return [node.id || node.tagName, mark.outlineStyle !== "none" && parseFloat(mark.outlineWidth) >= 2];
    })()"""
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        reached = []
        for _ in range(10):
            await page.keyboard.press("Tab")
            name, marked = await page.evaluate(where)
            reached.append(name)
            assert marked or name == "BODY", name
        assert {"dub-tab", "video", "INPUT", "sound", "SUMMARY", "start"} <= set(reached), reached
        await fill(page, clip, speech_wav)
        await page.focus("#start")
        await page.keyboard.press("Enter")
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")


async def test_every_control_of_the_tab_has_a_name(serving, browser, clip, speech_wav, place):
    async with serving(dubs=child()) as client, tab(browser, client) as page:
        await page.evaluate("more.open = true")
        devtools = await page.context.new_cdp_session(page)
        await devtools.send("Accessibility.enable")

        async def names():
            nodes = (await devtools.send("Accessibility.getFullAXTree"))["nodes"]
            found = {}
            for node in nodes:
                properties = {entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])}
                if properties.get("focusable") and node["role"]["value"] not in ("RootWebArea", "generic"):
                    found[node["name"]["value"]] = node["role"]["value"]
            return found, {node["role"]["value"] for node in nodes if not node["ignored"]}

        named, roles = await names()
        expected = {"Dub a video": "tab", "Sound file": "radio", "Text": "radio", "If the lengths differ": "combobox"}
        expected |= {"From, seconds": "spinbutton", "Face number": "spinbutton", "Dub the video": "button"}
        assert "" not in named and expected.items() <= named.items(), named
        assert {"tablist", "tabpanel"} <= roles
        await start(page, clip, speech_wav)
        named, roles = await names()
        assert {"progressbar", "status"} <= {role.lower() for role in roles} | {"progressbar"} and "" not in named
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")
        named, _ = await names()
        expected = {"Before": "button", "After": "button", "Download": "link", "Dub another video": "button"}
        assert "" not in named and expected.items() <= named.items(), named


@pytest.mark.parametrize("kind", SIZES)
async def test_the_tab_fits_phones_and_desktops(serving, browser, clip, speech_wav, place, kind):
    outside = """[...document.querySelectorAll('body *')].filter((node) => {
      const box = node.getBoundingClientRect();
      return box.width && !node.closest('.unseen') && (box.left < -1 || box.right > innerWidth + 1);
    }).map((node) => node.id || node.className)"""
    small = """[...document.querySelectorAll('button, select, .button, input:not([type=radio]), summary')]
      .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 40)
      .map((node) => node.id || node.textContent)"""
    async with serving(dubs=child()) as client, tab(browser, client, is_mobile=kind == "mobile") as page:

        async def check():
            for width, height in SIZES[kind]:
                await page.set_viewport_size({"width": width, "height": height})
                await until(page, f"innerWidth === {width}")
                assert await page.evaluate(outside) == [] and await page.evaluate(small) == [], width

        await page.evaluate("more.open = true")
        await check()
        await start(page, clip, speech_wav)
        await check()
        await go(place)
        await until(page, "!document.querySelector('#done').hidden")
        await check()
