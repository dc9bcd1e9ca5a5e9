"""The tab "Make your own" in a real browser, whose camera plays a file. A small program, which copies an avatar that
was enrolled before, stands for the process that does the work, in all tests but the first."""

from __future__ import annotations

import contextlib
import sys

import av
import pytest

from benchmarks.chromium import PROGRAM, console, launch, open_page, until
from streaming.config import EnrolmentsConfig

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH"),
]

WORK = """
import json, shutil, sys
job = json.loads(sys.stdin.readline())
def tell(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
tell("remark", code="dark", text="the face is dark", at_s=None)
if sys.argv[2:]:
    tell("error", code=sys.argv[2], message=job["video"] + ": no face was found; film one person", at_s=None)
    sys.exit(2)
shutil.copy(sys.argv[1], job["output"])
tell("finished", report={"used_s": 6.0, "clip_s": 8.0})
"""
FORM_SHOWN = "!document.querySelector('#making').hidden"
DONE = "!document.querySelector('#make .done').hidden"


@pytest.fixture
def made(avatar_path, tmp_path):
    """Settings of a server whose enrolments are copies of the test avatar."""

    def settings(*arguments):
        program = (sys.executable, "-c", WORK, str(avatar_path), *arguments)
        return EnrolmentsConfig(program=program, folder=tmp_path / "made")

    return settings


@contextlib.asynccontextmanager
async def tab(browser, client, **options):
    permissions = options.pop("permissions", ["camera", "microphone"])
    async with open_page(browser, f"{client.server.url}/#make", permissions=permissions, **options) as page:
        await until(page, "!document.querySelector('#make').hidden && document.querySelector('#voices').options.length")
        yield page


async def fill(page, clip, name="Anna"):
    if clip:
        await page.set_input_files("#clip", clip)
    await page.get_by_label("Name of the avatar").fill(name)
    await page.get_by_label("The person in the video agrees").check()


async def choice(page):
    """The name of the avatar that is chosen on the first tab, and how many there are."""
    return await page.evaluate(
        "[document.querySelector('#avatars :checked').value, document.querySelectorAll('#avatars input').length]"
    )


@pytest.mark.slow
async def test_a_recording_of_the_camera_becomes_an_avatar_that_says_its_first_sentence(
    serving, speaker_video, tmp_path
):
    camera = tmp_path / "camera.mjpeg"
    with av.open(str(speaker_video)) as reader, av.open(str(camera), "w", format="mjpeg") as writer:
        stream = writer.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 512, 512, "yuvj420p"
        stream.codec_context.qmin, stream.codec_context.qmax = 2, 4
        for number, frame in enumerate(reader.decode(video=0)):
            if number == 150:
                break
            writer.mux(stream.encode(frame.reformat(format="yuvj420p")))
        writer.mux(stream.encode(None))
    flags = ("--use-fake-ui-for-media-stream", f"--use-file-for-fake-video-capture={camera}")
    async with (
        serving(enrolments=EnrolmentsConfig(folder=tmp_path / "made")) as client,
        launch(*flags) as browser,
        tab(browser, client) as page,
    ):
        await page.click("#shoot")
        await until(page, "document.querySelector('#light').textContent === 'The light is good.'")
        await page.evaluate("Object.assign(document.querySelector('#camera').dataset, {readS: 3, quietS: 1})")
        await page.click("#shoot")
        for cue in ("Get ready", "Read this aloud", "in silence"):
            await until(page, f"document.querySelector('#cue').textContent.includes('{cue}')")
        await until(page, "!document.querySelector('#taken').hidden")
        assert await page.evaluate("document.activeElement.id") == "own-name"
        assert await page.evaluate("document.querySelector('#preview').srcObject === null"), "the camera is off"
        await fill(page, None)
        await page.click("#make-start")
        await until(page, "document.querySelector('#make .timeleft').textContent.includes('left')")
        await until(page, f"{DONE} || {FORM_SHOWN}")
        assert "Anna is ready" in await page.evaluate("document.querySelector('#make').innerText")
        await until(page, "document.querySelector('#made').speaking")
        assert await choice(page) == ["Anna", 2] and not await console(page)
        assert (tmp_path / "made" / "Anna.avatar").is_file()


async def test_a_file_becomes_an_avatar_that_can_be_talked_with_and_deleted(
    serving, browser, short_clip, made, tmp_path, engine
):
    async with serving(enrolments=made()) as client, tab(browser, client) as page:
        await fill(page, short_clip, "Ben 2")
        await page.click("#make-start")
        await until(page, DONE)
        await until(page, "document.querySelector('#made').speaking")
        done = await page.evaluate("document.querySelector('#make .done').innerText")
        assert "6.0 s of the 8.0 s" in done and "the face is dark" in done
        assert await page.evaluate("document.activeElement.textContent") == "Ben 2 is ready"
        async with client.http.get("/v1/avatars/Ben 2/report") as reply:
            assert reply.status == 200
        async with page.context.expect_page() as opened:
            await page.click("#make-report")
        report = await opened.value
        await report.wait_for_load_state()
        assert "<h1" in await report.content()
        async with page.expect_download() as download:
            await page.click("#make-file")
        assert (await download.value).suggested_filename == "Ben 2.avatar"
        await page.click("#meet")
        await until(page, "document.querySelector('#state').textContent === 'Live'")
        assert await choice(page) == ["Ben 2", 2] and len(engine.sessions) == 1
        await page.click("#make-tab")
        async with client.http.get("/v1/enrolments") as reply:
            assert len((await reply.json())["enrolments"]) == 1
        await until(page, "document.querySelector('#avatar').state.name === 'ended'")
        await page.click("#make-delete")
        await until(page, FORM_SHOWN)
        assert await choice(page) == ["speaker", 1] and not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("missing", "field", "said"),
    [
        ("video", "clip", "Record yourself, or choose a video."),
        ("name", "own-name", "Give the avatar a name."),
        ("consent", "agree", "only with this consent"),
        ("free name", "own-name", "There is an avatar 'speaker'; choose another name"),
    ],
)
async def test_a_fault_is_told_below_its_field_which_gets_the_focus(
    serving, browser, short_clip, made, missing, field, said
):
    async with serving(enrolments=made()) as client, tab(browser, client) as page:
        await fill(page, None if missing == "video" else short_clip, "speaker" if missing == "free name" else "Anna")
        if missing == "name":
            await page.fill("#own-name", " ")
        if missing == "consent":
            await page.uncheck("#agree")
        await page.click("#make-start")
        await until(page, f"!document.querySelector('#{field}-error').hidden")
        assert said in await page.evaluate(f"document.querySelector('#{field}-error').textContent")
        assert await page.evaluate("document.activeElement.id") == field


async def test_a_video_that_is_refused_brings_the_form_back_with_the_reason(serving, browser, short_clip, made):
    async with serving(enrolments=made("no-face")) as client, tab(browser, client) as page:
        await fill(page, short_clip)
        await page.click("#make-start")
        await until(page, "document.querySelector('#clip-error').textContent.includes('no face was found')")
        assert await page.evaluate(f"{FORM_SHOWN} && document.querySelector('#own-name').value === 'Anna'")


async def test_a_browser_without_a_camera_is_told_so_and_can_choose_a_file(serving, browser, made):
    async with serving(enrolments=made()) as client, tab(browser, client, permissions=[]) as page:
        await page.click("#shoot")
        await until(page, "document.querySelector('#clip-error').textContent.includes('blocks the camera')")


async def test_the_tab_fits_a_phone_and_every_control_has_a_name(serving, browser, made):
    size = {"width": 390, "height": 844}
    async with serving(enrolments=made()) as client, tab(browser, client, viewport=size) as page:
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate(
            "document.querySelector('#tabs').scrollWidth <= document.querySelector('#tabs').clientWidth"
        )
        names = [await page.get_by_role(role, name=name).count() for role, name in (
            ("button", "Use the camera"), ("textbox", "Name of the avatar"), ("button", "Make the avatar"),
            ("tab", "Make your own"), ("checkbox", "The person in the video agrees"),
        )]  # fmt: skip
        assert names == [1] * 5
