"""The child process that speaks with the eSpeak NG library of the `espeakng-loader` wheel.

    python -m streaming.voices.espeak_child VOICE [--phonemes] < TEXT > SOUND.wav

It writes what `espeak-ng --stdout --stdin -v VOICE` writes: a WAV header, then s16le mono as it is made. With
`--phonemes`, a newline and one line of JSON follow the sound: [[symbol, first sample], ...]. `training.speech.phonemes`
runs it so, without an import from streaming. eSpeak NG is under the GPL; it stays in a process of
its own, and only pipes join it to ours.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import struct
import sys

# Numbers and the structure: eSpeak NG's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
PHONEME_EVENTS_IPA = 3
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
EVENT_PHONEME = 7
BUFFER_MS = 60  # of sound in one callback and one write


class Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    )


SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def wav_header(sample_rate_hz: int) -> bytes:
    """A WAV header of unknown length, as streaming programs write it."""
    unknown = 0x7FFFF000
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE") + fmt + struct.pack("<4sI", b"data", unknown)


def open_library(voice: str, options: int) -> tuple[ctypes.CDLL, int]:
    """eSpeak NG, ready to speak in `voice`, and its sample rate in Hz. ValueError if it does not start."""
    espeakng_loader = importlib.import_module("espeakng_loader")  # this process alone loads it
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    sample_rate_hz = int(library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, data, options))
    if sample_rate_hz <= 0:
        raise ValueError(f"eSpeak NG did not start with the data at {data.decode()}")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"eSpeak NG has no voice {voice!r}")
    return library, sample_rate_hz


def speak(text: str, voice: str, with_phonemes: bool) -> int:
    """Write `text` as sound to stdout; returns the exit code."""
    try:
        library, sample_rate_hz = open_library(voice, PHONEME_EVENTS_IPA if with_phonemes else 0)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    out = sys.stdout.buffer
    out.write(wav_header(sample_rate_hz))
    out.flush()
    phonemes: list[tuple[str, int]] = []

    @SynthCallback  # type: ignore[untyped-decorator]  # ctypes builds the decorator at run time
    def write(samples: ctypes._Pointer[ctypes.c_short] | None, count: int, events: ctypes._Pointer[Event]) -> int:
        phonemes.extend(phonemes_in(events))
        if not samples or count <= 0:
            return 0
        try:
            out.write(ctypes.string_at(samples, 2 * count))
            out.flush()
        except OSError:  # the reader has gone: stop speaking
            return 1
        return 0

    library.espeak_SetSynthCallback(write)
    encoded = text.encode() + b"\0"
    size = ctypes.c_size_t(len(encoded))
    code = int(library.espeak_Synth(encoded, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None))
    if with_phonemes:
        out.write(b"\n" + json.dumps(phonemes).encode())
    return code


def phonemes_in(events: ctypes._Pointer[Event]) -> list[tuple[str, int]]:
    """The phonemes, with their first samples, in a list of events that ends with type 0."""
    phonemes = []
    index = 0
    while events[index].type:
        if events[index].type == EVENT_PHONEME:
            phonemes.append((events[index].string.decode("utf-8", "replace"), events[index].sample))
        index += 1
    return phonemes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("voice")
    parser.add_argument("--phonemes", action="store_true")
    arguments = parser.parse_args()
    sys.exit(speak(sys.stdin.buffer.read().decode("utf-8", "replace"), arguments.voice, arguments.phonemes))
