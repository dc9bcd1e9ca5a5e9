"""Tests of a machine without sound devices."""

from __future__ import annotations

import pytest

from streaming.errors import SoundDeviceError
from streaming.local.sound_devices import list_devices


def portaudio() -> bool:
    """Whether PortAudio is installed and the machine has no sound device."""
    try:
        return not list_devices()
    except SoundDeviceError:
        return False


needs_silence = pytest.mark.skipif(
    not portaudio(), reason="needs PortAudio (apt-get install libportaudio2) and a machine without sound devices"
)
