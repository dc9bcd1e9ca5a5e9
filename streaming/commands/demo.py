"""The command `personastream demo`: enrols the bundled speaker, once, and serves it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from engine.errors import DependencyError
from engine.models.weights import ASSETS, fingerprint
from streaming.commands.serve import Serve
from streaming.config import ServerConfig

CLONE = Path(__file__).parents[2] / "demo"
INSTALLED = Path(sysconfig.get_path("data")) / "share" / "personastream" / "demo"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve the bundled synthetic speaker. The first start enrols it, which takes a minute."""

    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = field(default_factory=ServerConfig)

    def run(self) -> int:
        """Serve until a signal stops it; returns the exit code, that of the enrolment where it fails."""
        folder = demo_folder()
        avatar = avatar_path(folder / "speaker.mp4")
        if not avatar.is_file():
            avatar.parent.mkdir(parents=True, exist_ok=True)
            enrolment = [sys.executable, "-P", "-m", "precompute", str(folder / "speaker.mp4"), "-o", str(avatar)]
            if code := subprocess.run(enrolment, check=False).returncode:
                return code
        return Serve(avatars=(avatar,), samples=folder, server=self.server).run()


def demo_folder() -> Path:
    """The folder with the speaker and the samples: of a clone, or where the wheel put it. Raises DependencyError."""
    for folder in (CLONE, INSTALLED):
        if (folder / "speaker.mp4").is_file():
            return folder
    raise DependencyError(
        f"no demo speaker in {CLONE} or {INSTALLED}; install personastream with pip into an environment, or run the "
        "demo in a clone"
    )


def avatar_path(video: Path) -> Path:
    """Where the avatar of `video` lies in the user's cache: in a folder for this video and these weights."""
    made_of = [hashlib.sha256(video.read_bytes()).hexdigest(), *map(fingerprint, sorted(ASSETS.glob("*.safetensors")))]
    key = hashlib.sha256("".join(made_of).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "personastream" / "demo" / key / "speaker.avatar"
