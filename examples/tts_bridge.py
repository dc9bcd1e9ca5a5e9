"""Any websocket TTS → the avatar: sends text, and forwards each piece of sound as it arrives.

    python examples/tts_bridge.py ws://localhost:9000/tts "What the avatar says." [http://localhost:8080]

The TTS here takes one JSON message {"text": …}, answers with binary s16le mono at 24 kHz and closes. Change `speech`
for another one. Requires only aiohttp.
"""

import asyncio
import base64
import sys
from collections.abc import AsyncIterator

import aiohttp


async def speech(http: aiohttp.ClientSession, url: str, text: str) -> AsyncIterator[bytes]:
    async with http.ws_connect(url) as tts:
        await tts.send_json({"text": text})
        async for message in tts:
            yield message.data


async def main(tts: str, text: str, server: str = "http://localhost:8080") -> None:
    async with aiohttp.ClientSession() as http:
        avatar = (await (await http.get(f"{server}/v1/avatars")).json())["avatars"][0]["name"]
        session = await (await http.post(f"{server}/v1/sessions", json={"avatar": avatar})).json()
        page = f"{server}/?session={session['id']}&token={session['token']}"
        print(f"watch it at {page}", flush=True)
        async with http.ws_connect(f"{server}{session['speech']}?token={session['token']}") as socket:
            await socket.send_json({"type": "speech.start", "id": "1", "sample_rate": 24_000})
            async for pcm in speech(http, tts, text):
                coded = base64.b64encode(pcm).decode()
                await socket.send_json({"type": "speech.audio", "id": "1", "pcm": coded})
            await socket.send_json({"type": "speech.end", "id": "1"})
            async for message in socket:
                print(message.data, flush=True)
                if message.json()["type"] == "playback.finished":
                    break


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
