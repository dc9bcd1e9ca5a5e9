"""Avatars: loads and unloads avatars of a running engine, within a bound of their memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from engine.avatar.avatar import Avatar
from engine.errors import CapacityError, UnknownAvatarError
from engine.live.engine import Engine
from engine.live.pipeline import AvatarPipeline
from streaming.errors import AvatarInUseError

# Decoded frames that an avatar in use keeps in all caches: 73 MB of 93 MB measured at 512 x 512.
KEPT_FRAMES = 190
MAX_FRAMES_BYTES = 256 << 20


class Avatars:
    """The engine's avatars, the least recently used first.

    max_bytes: beyond it, avatars without a session are unloaded; None: no bound.  in_use: names of avatars with a
    session.  loaded: called with each new pipeline.
    """

    def __init__(
        self,
        engine: Engine,
        max_bytes: int | None,
        in_use: Callable[[], set[str]],
        loaded: Callable[[AvatarPipeline], None],
    ):
        self._engine, self._max_bytes, self._in_use, self._loaded = engine, max_bytes, in_use, loaded
        self._paths = {name: avatar.path for name, avatar in engine.avatars.items()}
        self._order = OrderedDict.fromkeys(engine.avatars)
        self._loading = asyncio.Lock()

    def used(self, name: str) -> None:
        """Record that a session of the avatar was opened."""
        if name in self._order:
            self._order.move_to_end(name)

    async def load(self, name: str, path: Path | None = None) -> None:
        """Load the avatar unless it is loaded, by default from where it came before.

        Raises UnknownAvatarError without such a path, AvatarFileError, CapacityError where the memory is in use.
        """
        async with self._loading:
            if name in self._engine.avatars:
                return self.used(name)
            path = path or self._paths.get(name)
            if path is None:
                raise UnknownAvatarError(f'no avatar {name!r} was loaded before; expected {{"path": its file}}')
            pipeline = await self._engine.load_avatar(name, path)
            self._loaded(pipeline)
            self._paths[name], self._order[name] = path, None
            self._make_room(name)

    def unload(self, name: str) -> None:
        """Raises UnknownAvatarError, AvatarInUseError."""
        if name not in self._order:
            raise UnknownAvatarError(f"no avatar {name!r} is loaded; GET /v1/avatars lists those that are")
        if name in self._in_use():
            raise AvatarInUseError(f"avatar {name!r} has open sessions; close them first")
        self._drop(name)

    def knows(self, name: str) -> bool:
        """Whether an avatar of that name is loaded, or was."""
        return name in self._paths

    def forget(self, name: str) -> None:
        """Unload the avatar if it is loaded, and do not load it again. Raises AvatarInUseError."""
        if name in self._order:
            self.unload(name)
        self._paths.pop(name, None)

    def _make_room(self, newest: str) -> None:
        if self._max_bytes is None:
            return
        idle = [name for name in self._order if name not in self._in_use() | {newest}]
        while self._bytes() > self._max_bytes and idle:
            self._drop(idle.pop(0))
        if self._bytes() > self._max_bytes and len(self._order) > 1:
            self._drop(newest)
            raise CapacityError(f"the memory for avatars is full: all of the {len(self._order)} loaded ones are in use")

    def _drop(self, name: str) -> None:
        del self._order[name]
        self._engine.unload_avatar(name)

    def _bytes(self) -> int:
        return sum(map(resident_bytes, self._engine.avatars.values()))


def resident_bytes(avatar: Avatar) -> int:
    """The memory that an avatar in use takes, estimated from its tensors and the size of its frames."""
    bank = avatar.bank
    tensors = (avatar.alpha, avatar.beta, avatar.pose, avatar.crop, bank.crops, bank.alpha, bank.beta, bank.pose)
    frames = KEPT_FRAMES * avatar.width * avatar.height * 3 // 2
    return sum(tensor.nbytes for tensor in tensors) + min(frames, MAX_FRAMES_BYTES)
