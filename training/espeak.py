"""The child process that speaks with eSpeak NG and says when each phoneme begins.

    python -m training.espeak VOICE < TEXT > SOUND

It writes one line of JSON, {"rate": Hz, "phonemes": [[symbol, first sample], ...]}, then s16le mono. eSpeak NG is under
the GPL and stays in a process of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys

SYNCHRONOUS, BUFFER_MS, PHONEME_EVENTS_IPA = 2, 60, 3  # numbers and the structure: eSpeak NG's speak_lib.h
POSITION_CHARACTER, CHARS_UTF8 = 1, 1
PHONEME = 7


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


def speak(text: str, voice: str) -> int:
    """Write `text` as sound to stdout; returns the exit code."""
    espeakng_loader = importlib.import_module("espeakng_loader")
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(SYNCHRONOUS, BUFFER_MS, data, PHONEME_EVENTS_IPA)
    if rate <= 0 or library.espeak_SetVoiceByName(voice.encode()) != 0:
        print(f"eSpeak NG has no voice {voice!r} or did not start with the data at {data.decode()}", file=sys.stderr)
        return 1
    sound: list[bytes] = []
    phonemes: list[tuple[str, int]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
    def heard(samples: ctypes._Pointer[ctypes.c_short] | None, count: int, events: ctypes._Pointer[Event]) -> int:
        index = 0
        while events[index].type:
            if events[index].type == PHONEME:
                phonemes.append((events[index].string.decode("utf-8", "replace"), events[index].sample))
            index += 1
        if samples and count > 0:
            sound.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(heard)
    encoded = text.encode() + b"\0"
    size = ctypes.c_size_t(len(encoded))
    library.espeak_Synth(encoded, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
    sys.stdout.buffer.write(json.dumps({"rate": rate, "phonemes": phonemes}).encode() + b"\n" + b"".join(sound))
    return 0


if __name__ == "__main__":
    sys.exit(speak(sys.stdin.buffer.read().decode("utf-8", "replace"), sys.argv[1]))
