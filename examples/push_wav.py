"""The avatar speaks a WAV file; prints the playback events.

    python examples/push_wav.py speech.wav [http://localhost:8080]

Uses the client of this package, which also yields every frame with its sound.
"""

import asyncio
import sys
import wave

from streaming.agents.client import open_avatar
from streaming.speech.protocol import Failure, Finished, Unit


async def main(path: str, server: str = "http://localhost:8080", avatar: str = "speaker") -> None:
    async with open_avatar(server, avatar) as session:
        with wave.open(path) as sound:
            rate, channels = sound.getframerate(), sound.getnchannels()
            while pcm := sound.readframes(rate):
                await session.speak(pcm, rate, channels)
        await session.finish()
        frames = 0
        async for message in session:
            if isinstance(message, Unit):
                frames += message.speaking
                continue
            print(message, flush=True)
            if isinstance(message, Finished | Failure):
                break
        print(f"{frames} frames of speech")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
