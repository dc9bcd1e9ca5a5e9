"""The page in a real browser: it shows its state, reconnects by itself, and is accessible."""

from __future__ import annotations

import asyncio
import contextlib
import math

import pytest

from benchmarks.chromium import PROGRAM, console, observe, open_page, until
from engine.live.engine import Engine
from streaming.config import ServerConfig
from streaming.server.app import Server
from streaming.server.auth import Secrets
from streaming.server.session_events import CLOSED
from streaming.voices.espeak import espeak_voices

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH"),
]

STATE = "document.querySelector('#state').textContent"
STAGE = "document.querySelector('persona-stream').shadowRoot"
LIVE = f"{STATE} === 'Live' && {STAGE}.querySelector('video').videoWidth > 0"
STATUS = f"{STAGE}.querySelector('[role=status]').textContent"
START = f"{STAGE}.querySelector('.start')"
SIZES = {"mobile": [(390, 844), (844, 390)], "desktop": [(768, 1024), (1280, 860)]}
TYPE = "document.querySelector('#text').value = 'Some words that take their time. '.repeat(10); "  # 20 s
SPEAK = TYPE + "document.querySelector('#say').requestSubmit()"
# What the page opens, so that it can be cut off from outside.
SOCKETS = """window.sockets = []; window.WebSocket = class extends WebSocket {
  constructor(...options) { super(...options); sockets.push(this); } };"""

# A proxy that passes no websockets on; a network that lets no UDP through, with the search for a path cut short.
NO_SOCKETS = """window.WebSocket = class extends WebSocket {
  constructor() { super("ws://127.0.0.1:9/"); } };"""
NO_PATH = """window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(options) { super({ ...options, iceTransportPolicy: "relay" }); } };
const later = window.setTimeout;
window.setTimeout = (work, ms) => later(work, ms === 15_000 ? 300 : ms);"""


@contextlib.asynccontextmanager
async def live(browser, client, **options):
    async with open_page(browser, client.server.url, **options) as page:
        await until(page, LIVE)
        yield page


async def test_it_comes_alive_by_itself_and_tells_its_figures(serving, browser):
    async with serving() as client, live(browser, client) as page:
        for figure, unit in {"fps": "fps", "first": "ms", "bitrate": "kbit/s", "rtt": "ms"}.items():
            await until(page, f"document.getElementById('{figure}').textContent.endsWith('{unit}')")
        assert "Not connected" not in await page.evaluate(STATUS)
        assert not await console(page), "nothing breaks the page's own security policy"


async def test_enter_speaks_and_shift_enter_begins_a_line_and_what_waits_is_shown_and_cleared(serving, browser):
    async with serving() as client, live(browser, client) as page:
        await page.evaluate(TYPE + "document.querySelector('#text').focus()")
        await page.keyboard.press("Shift+Enter")
        assert "\n" in await page.evaluate("document.querySelector('#text').value")
        await page.keyboard.press("Enter")
        await until(page, "avatar.speaking")
        await page.keyboard.type("Another.")  # the first text is selected: this one replaces it
        await page.keyboard.press("Enter")
        await until(page, "document.querySelector('#waiting').textContent === 'Another.'")
        await until(page, "document.getElementById('skew').textContent.endsWith('ms')")
        await page.evaluate("document.querySelector('#clear').click()")
        await until(page, "!avatar.speaking && document.querySelector('#queue').hidden")
        await until(page, "document.getElementById('skew').textContent === '–'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("'a'.repeat(5001)", "5,000 can be spoken at once"),
        ("'你好，世界'", "does not read Chinese"),
        ("'Привет, мир'", "does not read Cyrillic letters"),
    ],
)
async def test_a_text_that_cannot_be_spoken_is_explained_below_its_field_until_dismissed(serving, browser, text, said):
    async with serving() as client, live(browser, client) as page:
        await page.evaluate(f"document.querySelector('#text').value = {text}")
        await page.evaluate("document.querySelector('#voices').selectedIndex = 0")
        await page.evaluate("document.querySelector('#say').requestSubmit()")
        message = "document.querySelector('#say #message')"
        assert said in await page.evaluate(f"{message}.textContent")
        await page.evaluate("document.querySelector('#dismiss').click()")
        assert await page.evaluate(f"{message}.hidden")


async def test_a_session_that_is_given_leaves_the_address_and_survives_a_reload(serving, browser):
    async with serving() as client:
        session = await client.open_session()
        address = f"{client.server.url}/?session={session['id']}&token={session['token']}"
        async with open_page(browser, address) as page:
            for _ in range(2):
                await until(page, LIVE)
                assert await page.evaluate("location.search") == ""
                assert [held.session.id for held in client.server.live_sessions] == [session["id"]]
                await page.reload()


async def test_avatars_are_chosen_by_their_pictures(browser, avatar_path):
    async with (
        Engine({"anna": avatar_path, "bob-2": avatar_path}, max_sessions=2, max_load=math.inf) as engine,
        Server(engine, ServerConfig(port=0), espeak_voices()) as server,
        open_page(browser, server.url) as page,
    ):
        await until(page, LIVE)
        assert [live_session.avatar for live_session in server.live_sessions] == ["anna"]
        names = "[...document.querySelectorAll('#avatars label')].map((choice) => choice.textContent)"
        assert await page.evaluate(names) == ["anna", "bob 2"]
        await until(page, "[...document.querySelectorAll('#avatars img')].every((image) => image.naturalWidth > 0)")
        await page.evaluate("document.querySelector('#avatars input:checked').focus()")
        await page.keyboard.press("ArrowRight")
        async with asyncio.timeout(60):
            while [live_session.avatar for live_session in server.live_sessions] != ["bob-2"]:
                await asyncio.sleep(0.1)
        await until(page, LIVE)


async def test_voices_are_grouped_by_their_makers(serving, browser):
    english = espeak_voices()["en-us"]
    voices = {"studio/ann_lee": english, "studio/bo": english, "en-us": english}
    async with serving(voices=voices) as client, live(browser, client) as page:
        group = "document.querySelector('#voices optgroup')"
        assert await page.evaluate(f"[{group}.label, {group}.children.length, {group}.children[0].label]") == [
            "studio",
            2,
            "ann lee",
        ]
        assert await page.evaluate("[...voices.options].map((option) => option.value)") == list(voices)
        await page.evaluate(f"voices.value = 'studio/bo'; {SPEAK}")
        await until(page, "avatar.speaking")


async def test_a_session_that_somebody_else_ended_stays_ended_until_it_is_started_again(serving, browser, engine):
    async with serving() as client, live(browser, client) as page:
        (live_session,) = client.server.live_sessions
        await live_session.close(CLOSED)
        await until(page, f"{STATE} === 'The session was ended'")
        assert await page.evaluate(STATUS) == "The session was ended. A client closed it."
        assert await page.evaluate("document.querySelector('#speech').disabled")
        assert not engine.sessions
        await page.evaluate(f"{START}.click()")
        await until(page, LIVE)


async def test_a_server_that_drains_is_announced_and_its_successor_found(engine, browser):
    first = Server(engine, ServerConfig(port=0, drain_s=8.0), espeak_voices())
    async with first:
        address, port = first.url, int(first.url.rpartition(":")[2])
        context = open_page(browser, address)
        page = await context.__aenter__()
        await until(page, LIVE)
        await page.evaluate(SPEAK)
        await until(page, "avatar.speaking")
        draining = asyncio.ensure_future(first.drain())
        await until(page, f"{STATE} === 'The server is shutting down' && avatar.state.name === 'closing'")
        assert await page.evaluate("document.querySelector('#speech').disabled && avatar.speaking"), "it still speaks"
        await page.evaluate("avatar.interrupt()")
        await until(page, "avatar.state.name === 'waiting'")
        await draining
    await until(page, f"{STATE} === 'The server cannot be reached'")
    assert await page.evaluate(f"/^Try(ing| now)/.test({START}.textContent.trim())")
    async with Server(engine, ServerConfig(port=port), espeak_voices()):
        await until(page, LIVE)
        await context.__aexit__(None, None, None)


async def test_a_full_server_is_waited_for(serving, browser, max_sessions):
    async with serving() as client:
        others = [await client.open_session() for _ in range(max_sessions)]
        async with open_page(browser, client.server.url) as page:
            await until(page, f"{STATE} === 'The server is full'")
            assert await page.evaluate("avatar.state.retryInS") == 5
            await until(page, f"/Try now \\(\\d\\)/.test({START}.textContent)")
            headers = {"Authorization": f"Bearer {others[0]['token']}"}
            async with client.http.delete(f"/v1/sessions/{others[0]['id']}", headers=headers):
                pass
            await until(page, LIVE)


async def test_too_many_sessions_of_one_address_are_explained(serving, browser):
    async with serving(sessions_per_minute=1) as client:
        await client.open_session()
        async with open_page(browser, client.server.url) as page:
            await until(page, f"{STATE} === 'Too many at once'")
            assert "minute" in await page.evaluate(STATUS) and await page.evaluate("avatar.state.retryInS > 5")


async def test_the_key_is_asked_for_until_it_is_right_and_kept_for_the_tab(serving, browser):
    async with serving(secrets=Secrets(keys=("sesame",))) as client, open_page(browser, client.server.url) as page:
        for key in ("wrong", "sesame"):
            await until(page, "document.querySelector('#keys').open")
            assert await page.evaluate("document.activeElement.id") == "key"
            fill = f"document.querySelector('#key').value = '{key}'"
            await page.evaluate(f"{fill}; document.querySelector('#keys [value=given]').click()")
            if key == "wrong":
                await until(page, "document.querySelector('#keyhint').textContent.includes('did not take')")
        await until(page, LIVE)
        await page.reload()
        await until(page, LIVE)
        assert not await page.evaluate("document.querySelector('#keys').open")


async def test_without_a_key_it_says_that_one_is_needed(serving, browser):
    async with serving(secrets=Secrets(keys=("sesame",))) as client, open_page(browser, client.server.url) as page:
        await until(page, "document.querySelector('#keys').open")
        await page.keyboard.press("Escape")
        await until(page, f"{STATE} === 'A key is needed'")


async def test_a_lost_websocket_is_opened_again_and_the_picture_stays(serving, browser):
    async with serving() as client, live(browser, client, script=SOCKETS) as page:
        (live_session,) = client.server.live_sessions
        viewers = set(live_session.viewers)
        await page.evaluate("sockets[0].close()")
        await until(page, "sockets.length === 2 && sockets[1].readyState === 1")
        await until(page, "avatar.state.name === 'live'")
        assert [set(live_session.viewers) for live_session in client.server.live_sessions] == [viewers]
        await page.evaluate(SPEAK)
        await until(page, "avatar.speaking")


async def test_a_lost_picture_is_found_again_in_the_same_session(serving, browser):
    async with serving() as client, live(browser, client) as page:
        (live_session,) = client.server.live_sessions
        (viewer,) = live_session.viewers.values()
        await page.evaluate("window.seen = []; avatar.addEventListener('state', (e) => seen.push(e.detail.name))")
        viewer.leave("failed")
        await until(page, "seen.includes('reconnecting')")
        await until(page, "avatar.state.name === 'live'")
        assert list(client.server.live_sessions) == [live_session] and viewer.id not in live_session.viewers


@pytest.mark.parametrize(
    ("fault", "title", "advice"),
    [(NO_SOCKETS, "No speech connection", "proxy"), (NO_PATH, "No network path", "firewall may block UDP")],
    ids=["websockets", "path"],
)
async def test_a_blocked_connection_is_named(serving, browser, engine, fault, title, advice):
    async with serving() as client, open_page(browser, client.server.url, fault) as page:
        await until(page, f"{STATE} === '{title}'")
        assert advice in await page.evaluate(STATUS)
        assert await page.evaluate("avatar.figures().then((figures) => figures.firstFrameMs)") is None
        async with asyncio.timeout(60):  # no session is left at the server
            while engine.sessions:
                await asyncio.sleep(0.05)
        assert await page.evaluate(f"{START}.textContent.trim()") == "Start again"


async def test_sound_that_the_browser_blocks_is_turned_on_by_one_button(serving, browser):
    async with serving() as client, live(browser, client) as page:
        button = f"{STAGE}.querySelector('.sound')"
        await until(page, f"!{button}.hidden")
        assert await observe(page, f"{button}.textContent.trim()") == "Turn on sound"
        assert await observe(page, "avatar.muted"), "the picture plays meanwhile"
        await page.evaluate(f"{button}.click()")
        await until(page, f"{button}.hidden && !avatar.muted && !{STAGE}.querySelector('video').paused")


async def test_the_microphone_is_opened_and_closed(serving, browser):
    async with serving() as client, live(browser, client) as page:
        pressed = "document.querySelector('#microphone').getAttribute('aria-pressed')"
        await page.evaluate("document.querySelector('#microphone').click()")
        await until(page, f"{pressed} === 'true' && avatar.speaking")
        await until(page, "document.querySelector('#microphone').style.getPropertyValue('--level') > 0")
        await page.evaluate("document.querySelector('#microphone').click()")
        await until(page, f"{pressed} === 'false' && !avatar.speaking")


async def test_a_microphone_that_is_denied_is_explained(serving, browser):
    async with serving() as client, live(browser, client, microphone=False) as page:
        await page.evaluate("document.querySelector('#microphone').click()")
        await until(page, "document.querySelector('#message').textContent.includes('Allow it')")
        assert await page.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "false"


async def test_a_file_that_is_no_sound_is_explained(serving, browser, tmp_path):
    (tmp_path / "notes.txt").write_text("no sound")
    async with serving() as client, live(browser, client) as page:
        await page.set_input_files("#file", tmp_path / "notes.txt")
        await until(page, "document.querySelector('#message').textContent.includes('WAV, MP3 or Ogg')")


async def test_it_is_operated_by_keys_alone(serving, browser):
    """Tab reaches every control, the focus is visible, and Escape interrupts from anywhere."""
    where = """(() => {
      const outer = document.activeElement;
      const inner = outer.shadowRoot?.activeElement ?? outer;
      const mark = getComputedStyle(inner.closest?.(".upload") ?? inner);
      const marked = mark.outlineStyle !== "none" && parseFloat(mark.outlineWidth) >= 2;
      return [inner.id || inner.className || inner.tagName, marked];
    })()"""
    async with serving() as client, live(browser, client) as page:
        await page.evaluate(
            "window.done = []; avatar.addEventListener('playback-finished', (e) => done.push(e.detail))"
        )
        reached = []
        for _ in range(16):
            await page.keyboard.press("Tab")
            name, marked = await page.evaluate(where)
            reached.append(name)
            assert marked or name == "BODY", name
        for name in ("mute", "volume", "full", "text", "voices", "file", "microphone", "stop"):
            assert name in reached, reached
        await page.evaluate(SPEAK)
        await until(page, "avatar.speaking")
        await page.keyboard.press("Escape")
        await until(page, "done.length === 1")
        assert await page.evaluate("done[0].interrupted && done[0].positionSamples > 0")
        await until(page, f"{STAGE}.querySelector('.interrupt').disabled")


async def test_every_control_has_a_name(serving, browser):
    async with serving() as client, live(browser, client) as page:
        devtools = await page.context.new_cdp_session(page)
        nodes = (await devtools.send("Accessibility.getFullAXTree"))["nodes"]
        named = {}
        for node in nodes:
            properties = {entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])}
            if properties.get("focusable") and node["role"]["value"] not in ("RootWebArea", "generic"):
                named[node["name"]["value"]] = node["role"]["value"]
        assert "" not in named
        expected = {
            "Mute": "button",
            "Volume": "slider",
            "Full screen": "button",
            "Type": "textbox",
            "Voice": "combobox",
        }
        expected |= {"Speak": "button", "Microphone": "button", "End session": "button"}
        assert expected.items() <= named.items(), named
        roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
        assert "status" in roles and "main" in roles and "Video" in roles


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_contrast_and_nothing_moves_where_motion_is_reduced(serving, browser, scheme):
    """Contrast of at least 4.5 to 1 for text (WCAG 2.2, 1.4.3); disabled controls are exempt."""
    contrast = """(() => {
      const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const parts = (color) => color.match(/[\\d.]+/g).map(Number);
      const ground = (node) => {
        for (; node; node = node.parentElement) {
          const color = parts(getComputedStyle(node).backgroundColor);
          if (color.length < 4 || color[3] === 1) return color;
        }
        return [255, 255, 255];
      };
      const poor = [];
      for (const node of document.querySelectorAll("body *:not(script)")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.closest(":disabled")) continue;
        const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push([node.textContent, ratio]);
      }
      return poor;
    })()"""
    async with (
        serving() as client,
        live(browser, client, color_scheme=scheme, reduced_motion="reduce") as page,
    ):
        await page.evaluate(SPEAK)
        await until(page, "avatar.speaking")
        await page.evaluate(
            "document.querySelector('#message').textContent = 'x'; document.querySelector('#message').hidden = 0"
        )
        assert await page.evaluate(contrast) == []
        assert await page.evaluate(f"document.getAnimations().length + {STAGE}.getAnimations().length") == 0


@pytest.mark.parametrize("kind", SIZES)
async def test_it_fits_phones_and_desktops(serving, browser, kind):
    """Nothing overflows sideways, the whole picture is visible at once, and controls are large enough to touch."""
    outside = f"""[...document.querySelectorAll('body *'), ...{STAGE}.querySelectorAll('*')].filter((node) => {{
      const box = node.getBoundingClientRect();
      return box.width && !node.closest('.unseen, .avatars') && (box.left < -1 || box.right > innerWidth + 1);
    }}).map((node) => node.id || node.className)"""
    small = f"""[...document.querySelectorAll('button, select, .button'), ...{STAGE}.querySelectorAll('button')]
      .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 40)
      .map((node) => node.textContent)"""
    async with serving() as client, live(browser, client, is_mobile=kind == "mobile") as page:
        for width, height in SIZES[kind]:
            await page.set_viewport_size({"width": width, "height": height})
            await until(page, f"innerWidth === {width}")
            assert await page.evaluate(outside) == [], width
            assert await page.evaluate(small) == [], width
            box = await page.evaluate(
                "(({top, bottom, width}) => [top, bottom, width])(avatar.getBoundingClientRect())"
            )
            assert box[0] >= 0 and box[1] <= height and box[2] >= 0.35 * width, (width, box)


async def test_volume_and_mute_are_one_thing(serving, browser):
    async with serving() as client, live(browser, client) as page:
        await page.evaluate(f"{STAGE}.querySelector('.sound').click()")
        await page.evaluate(f"{STAGE}.querySelector('.volume').focus()")
        for _ in range(3):
            await page.keyboard.press("ArrowLeft")
        assert await page.evaluate("Math.round(avatar.volume * 100)") == 97
        await page.evaluate(f"{STAGE}.querySelector('.mute').click()")
        pressed = f"{STAGE}.querySelector('.mute').getAttribute('aria-pressed')"
        await until(page, f"{pressed} === 'true' && avatar.muted && {STAGE}.querySelector('.volume').value === '0'")
        await page.evaluate(f"{STAGE}.querySelector('.mute').click()")
        await until(page, f"{pressed} === 'false' && {STAGE}.querySelector('.volume').value === '97'")


async def test_it_fills_the_screen_and_leaves_it(serving, browser):
    async with serving() as client, live(browser, client) as page:
        await page.evaluate(f"{STAGE}.querySelector('.full').click()")
        await until(page, "document.fullscreenElement === avatar")
        await until(page, "avatar.getBoundingClientRect().width === innerWidth")
        await page.evaluate(f"{STAGE}.querySelector('.full').click()")
        await until(page, "document.fullscreenElement === null")
