"""The form of `POST /v1/dubs`, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from aiohttp import web

from engine.dubbing import DubOptions, Length, faces_of
from engine.errors import ProtocolError, SpeechFormatError
from streaming.server.media_probe import probe
from streaming.server.upload import Fields, Parts, Upload, about
from streaming.speech.protocol import MAX_TEXT_CHARS
from streaming.voices.ssml import plain
from streaming.voices.voice import Voice, find_voice

SPEECH = re.compile(r"speech(?:\.([1-9][0-9]?))?")
OPTIONS = {"length", "from", "to", "face", "mix", "quality"}
FIELDS = Fields(
    files=re.compile(f"video|{SPEECH.pattern}"),
    texts=frozenset(OPTIONS | {"text", "voice"}),
    expected=f"video, speech or speech.1, speech.2, …, or text and voice; {', '.join(sorted(OPTIONS))}",
)


@dataclass(frozen=True, kw_only=True)
class DubForm:
    """A checked form: a video, and the speech as files by face, or as a text for one face."""

    name: str  # of the video, as its owner calls it
    video: Path
    speech: Mapping[str, Path]  # with `text`: where its sound is to be written
    text: str | None
    voice: Voice | None
    options: DubOptions


async def dub_form(upload: Upload, request: web.Request, voices: Mapping[str, Voice], folder: Path) -> DubForm:
    """The form of a request, its files in `folder`. Raises FieldError, and as `Upload.form`."""
    form = _checked(await upload.form(request, FIELDS), voices, folder)
    await _check_media(upload, form)
    return form


def _checked(parts: Parts, voices: Mapping[str, Voice], folder: Path) -> DubForm:
    texts = parts.texts
    with about("video"):
        if "video" not in parts.files:
            raise ProtocolError("no video; expected a file in the field `video`")
    sounds = {match[1]: path for name, path in parts.files.items() if (match := SPEECH.fullmatch(name))}
    with about("speech"):
        if bool(sounds) == ("text" in texts):
            raise ProtocolError("expected either a sound file in the field `speech`, or a `text`")
        if None in sounds and len(sounds) > 1:
            raise ProtocolError("expected either one `speech`, or `speech.1`, `speech.2`, … for several faces")
    with about("face"):
        face = _number(texts, "face", int) if texts.get("face", "auto") != "auto" else None
        numbered = {int(number): path for number, path in sounds.items() if number is not None}
        sound = sounds.get(None, folder / "speech.wav")
        speech = faces_of(numbered or sound, "auto" if face is None else face)
    text = texts.get("text")
    with about("text"):
        if text is not None and not (plain(text).strip() and len(text.strip()) <= MAX_TEXT_CHARS):
            raise ProtocolError(f"text of {len(text.strip())} characters; expected words, at most {MAX_TEXT_CHARS}")
    with about("voice"):
        voice = find_voice(voices, texts.get("voice") or None) if text is not None else None
    return DubForm(
        name=parts.names["video"],
        video=parts.files["video"],
        speech=speech,
        text=None if text is None else plain(text),
        voice=voice,
        options=_options(texts, folder),
    )


def _options(texts: Mapping[str, str], folder: Path) -> DubOptions:
    values: dict[str, Any] = {"report": folder / "report.html"}
    for name, choices in (("length", get_args(Length)), ("quality", ("best", "fast"))):
        with about(name):
            if name in texts and texts[name] not in choices:
                raise ProtocolError(f"{name} {texts[name]!r:.40}; expected {', '.join(choices)}")
            values |= {name: texts[name]} if name in texts else {}
    for name, option in (("from", "from_s"), ("to", "to_s"), ("mix", "mix_db")):
        with about(name):
            values[option] = _number(texts, name, float) if texts.get(name) else None
            DubOptions(**values)
    return DubOptions(**values)


async def _check_media(upload: Upload, form: DubForm) -> None:
    with about("video"):
        await upload.check_video(form.video, form.name)
    for number, path in form.speech.items() if form.text is None else ():
        with about("speech" if number == "auto" or len(form.speech) == 1 else f"speech.{number}"):
            found = await probe(path)
            if found is None or not found.sound:
                raise SpeechFormatError(
                    "the file holds no sound that can be read; expected WAV, FLAC, MP3, M4A or Opus"
                )
            upload.check_length("the sound", found.duration_s)


def _number(texts: Mapping[str, str], name: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(texts[name])
    except ValueError as error:
        raise ProtocolError(f"{name} {texts[name]!r:.40}; expected a number") from error
