"""The benchmark in Chromium measures every figure; their values depend on the machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.browser import Watch, speech_figures
from benchmarks.chromium import PROGRAM, PageError, console, launch, observe, open_page, program, until
from benchmarks.live_page import marks
from engine.errors import SettingError

needs_chromium = pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")


@pytest.mark.browser
@needs_chromium
def test_every_figure_is_measured_and_they_fit_together(avatar_path, tmp_path, capsys):
    file = tmp_path / "made" / "browser.json"
    Watch(avatar=avatar_path, seconds=12, rounds=1, settle_s=0, quality="fast", json=file).run()
    figures = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    assert len(figures["first_synced_frame_ms"]) == 2 and len(figures["barge_in_ms"]) == 1
    assert min(figures["first_synced_frame_ms"]) > 0 and figures["watched_s"] > 12
    assert 0 < figures["distinct_fps_in_speech"] <= figures["rendered_fps_in_speech"]
    assert figures["fresh_fps_in_speech"] > 0 or figures["repeated_in_speech"] > 0, "a picture is new or repeated"
    assert figures["units"] > 0 <= figures["units_late"] and figures["decoded_fps"] > 0
    assert {"freezes", "packets_lost", "sound_concealed_percent", "picture_ahead_p99_abs_ms"} <= figures.keys()
    assert figures["marks"] >= 2 and figures["mark_spread_ms"] >= 0
    assert {"mark_picture_ahead_median_ms", "mark_trend_ms_per_hour"} <= figures.keys()
    assert figures["device"] and figures["instruction_set"] and figures["inference_threads"] >= 1
    assert figures["cores"]["server: inference_0"] > 0 and figures["cores"]["chromium: renderer"] > 0


@pytest.mark.parametrize("setting", [{"seconds": math.nan}, {"rounds": 0}, {"settle_s": -1.0}])
def test_settings_that_cannot_be_measured_are_refused(setting):
    with pytest.raises(SettingError, match=r"expected at least 2\.0, 1 and 0"):
        Watch(avatar=Path("none.avatar"), **setting).run()


def test_a_missing_chromium_is_refused_with_the_remedy():
    with pytest.raises(PageError, match="apt-get install chromium"):
        program(None)


@pytest.mark.browser
@needs_chromium
async def test_a_page_is_watched_without_touching_it_and_its_errors_are_raised():
    page_with = "data:text/html,<body>some text<script>{}</script>".format
    async with launch() as browser:
        async with open_page(browser, page_with("console.warn('careful')")) as page:
            assert await observe(page, "navigator.userActivation.hasBeenActive") is False
            assert [line.partition(" ")[0] for line in await console(page)] == ["careful"]
            with pytest.raises(PageError, match=r"(?s)not true after 0.3 s: 1 > 2\n.*careful.*some text"):
                await until(page, "1 > 2", 0.3)
        with pytest.raises(PageError, match="uncaught in the page: boom"):
            async with open_page(browser, page_with("throw new Error('boom')")) as page:
                await until(page, "document.readyState === 'complete'")
        with pytest.raises(PageError, match="nothing is not defined"):
            async with open_page(browser, page_with("")) as page:
                await page.evaluate("nothing")


def test_the_cadence_counts_new_pictures_and_allows_one_that_is_missing():
    shown_ms = np.cumsum([0.0, 33.3, 50.0, 33.3, 83.3, 33.3, 100.0, 50.0])
    change = np.full(8, 2.0)
    frames = np.stack([shown_ms, shown_ms, change, change], axis=1)
    figures = speech_figures(frames, {})
    assert figures["new_picture_gaps_even_percent"] == pytest.approx(100 * 6 / 7), "all gaps but that of 100 ms"
    assert figures["new_picture_gap_ms"][0] == 50.0 and figures["new_picture_gap_ms"][2] > 95
    frames[1, 2] = 0.1  # repeats the picture before it
    figures = speech_figures(frames, {})
    assert figures["distinct_fps_in_speech"] == pytest.approx(7 / 8 * figures["rendered_fps_in_speech"])
    assert figures["new_picture_gaps_even_percent"] == pytest.approx(100 * 5 / 6), "33.3 and 50 ms have become 83.3"


def test_a_flash_is_paired_with_the_nearest_beep():
    at_ms = np.arange(0.0, 10_000, 10)
    lit = (at_ms % 2_000 >= 1_000) & (at_ms % 2_000 < 1_040)
    loud = ((at_ms - 70) % 2_000 >= 1_000) & ((at_ms - 70) % 2_000 < 1_020)
    frames = np.stack([at_ms, at_ms + 5, at_ms, np.where(lit, 200, 10)], axis=1)
    sound = np.stack([at_ms, np.where(loud, 0.3, 0.0)], axis=1)
    assert marks(frames, sound).tolist() == [[at + 5, 65] for at in range(1_000, 10_000, 2_000)]
    assert marks(frames, sound * 0).shape == (0, 2)
