"""The engine: speech in, pictures with their sound out. No network.

from engine import speak

for unit in speak("anna.avatar", "speech.wav"):
    show(unit.image, unit.samples)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.avatar.avatar import Avatar
    from engine.commands.dub import dub
    from engine.live.engine import Engine
    from engine.live.offline import speak
    from engine.live.session import Session
    from engine.media import MediaUnit

__all__ = ["Avatar", "Engine", "MediaUnit", "Session", "dub", "speak"]

_MODULES = {
    "Avatar": "engine.avatar.avatar",
    "Engine": "engine.live.engine",
    "MediaUnit": "engine.media",
    "Session": "engine.live.session",
    "dub": "engine.commands.dub",
    "speak": "engine.live.offline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import engine.errors` alone does not load torch (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
