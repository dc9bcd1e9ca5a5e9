"""The child process that speaks with the eSpeak NG library of the `espeakng-loader` wheel.

    python -m streaming.voices.espeak_child VOICE < TEXT > SOUND.wav

It writes what `espeak-ng --stdout --stdin -v VOICE` writes: a WAV header, then s16le mono as it is made. eSpeak NG is
under the GPL; it stays in a process of its own and is spoken to through pipes alone, as the program of that name is.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import sys

AUDIO_OUTPUT_SYNCHRONOUS = 2  # the rest of these numbers stands in eSpeak NG's speak_lib.h
CHARS_UTF8 = 1
PHONEMES_OFF_SSML_OFF = 0
POSITION_CHARACTER = 1
BUFFER_MS = 60  # one callback, one write: how coarsely the sound streams

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def wav_header(sample_rate_hz: int) -> bytes:
    """A WAV header of unknown length, as programs write that stream."""
    unknown = 0x7FFFF000
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE") + fmt + struct.pack("<4sI", b"data", unknown)


def speak(text: str, voice: str) -> int:
    """Write `text` as sound to stdout; returns the exit code."""
    espeakng_loader = importlib.import_module("espeakng_loader")  # this process alone loads it
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    sample_rate_hz = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, data, 0)
    if sample_rate_hz <= 0:
        print(f"eSpeak NG did not start with the data at {data.decode()}", file=sys.stderr)
        return 1
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        print(f"eSpeak NG has no voice {voice!r}", file=sys.stderr)
        return 1
    out = sys.stdout.buffer
    out.write(wav_header(sample_rate_hz))
    out.flush()

    @SynthCallback  # type: ignore[untyped-decorator]  # ctypes builds the decorator at run time
    def write(samples: ctypes._Pointer[ctypes.c_short] | None, count: int, _events: int | None) -> int:
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
    return int(
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
    )


if __name__ == "__main__":
    sys.exit(speak(sys.stdin.buffer.read().decode("utf-8", "replace"), sys.argv[1]))
