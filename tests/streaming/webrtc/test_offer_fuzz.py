"""Offers that no browser makes: a good one damaged in many ways is answered or refused, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from whep_client import SDP, a_good_offer, bearer, frames, gone, viewer

pytestmark = pytest.mark.asyncio(loop_scope="session")

OFFERS = 150
HUNG_S = 60.0
NOISE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.sampled_from(["-1", "0", "65536", "4294967296", "99999999999999999999", "1e9", "NaN", "０", ""])


@st.composite
def damaged(draw, offer):
    """The offer with one to six of its lines lost, doubled, moved, cut, garbled or with another number."""
    lines = offer.split("\r\n")
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["lose", "double", "move", "cut", "garble", "number", "empty", "many"])):
            case "lose" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, line)
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "cut":
                lines[at] = line[: draw(st.integers(0, len(line)))]
            case "garble":
                place = draw(st.integers(0, len(line)))
                lines[at] = line[:place] + draw(NOISE) + line[place + draw(st.integers(0, 5)) :]
            case "number":
                words = line.split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(NUMBERS)
                lines[at] = " ".join(words)
            case "empty":
                name, colon, _ = line.partition(":")
                lines[at] = name + colon
            case "many":
                lines[at:at] = [line] * draw(st.integers(2, 40))
    return draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"])).join(lines)


async def offers(strategy, count):
    """`count` different examples of the strategy, always the same ones."""
    examples = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def collect(example):
        examples.append(example)

    collect()
    return list(dict.fromkeys(examples))


@pytest.mark.slow
async def test_damaged_offers_are_answered_or_refused_and_leave_nothing(serving, problem):
    good = await a_good_offer()
    async with serving() as client:
        session = await client.open_session()
        answered = refused = 0
        for offer in await offers(damaged(good), OFFERS):
            headers = SDP | bearer(session)
            async with (
                asyncio.timeout(HUNG_S),
                client.http.post(session["whep"], data=offer.encode(), headers=headers) as reply,
            ):
                if reply.status == 201:
                    answered += 1
                    async with client.http.delete(reply.headers["Location"], headers=bearer(session)) as left:
                        assert left.status == 200
                else:
                    refused += 1
                    assert await problem(reply, 400, "protocol"), offer
        assert answered > 10 and refused > 10, (answered, refused)
        await gone(client.server)
        async with viewer(client, session) as whep:
            await asyncio.gather(frames(whep.tracks["video"], 25), frames(whep.tracks["audio"], 50))
