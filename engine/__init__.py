"""The engine: speech in, pictures with their sound out. It uses no network.

from engine import speak

for unit in speak("anna.avatar", "speech.wav"):
    show(unit.image, unit.samples)

docs/python.md shows how to use the public names (`__all__`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.avatar.avatar import Avatar
    from engine.commands.dub import dub
    from engine.errors import PersonaStreamError
    from engine.live.engine import Engine
    from engine.live.offline import speak
    from engine.live.session import Session
    from engine.media import MediaUnit, PlaybackFinished, PlaybackStarted

__all__ = [
    "Avatar",
    "Engine",
    "MediaUnit",
    "PersonaStreamError",
    "PlaybackFinished",
    "PlaybackStarted",
    "Session",
    "dub",
    "speak",
]

_MODULES = {
    "Avatar": "engine.avatar.avatar",
    "Engine": "engine.live.engine",
    "MediaUnit": "engine.media",
    "PersonaStreamError": "engine.errors",
    "PlaybackFinished": "engine.media",
    "PlaybackStarted": "engine.media",
    "Session": "engine.live.session",
    "dub": "engine.commands.dub",
    "speak": "engine.live.offline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import engine.errors` does not load torch (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
