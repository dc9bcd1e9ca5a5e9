"""Text cut into sentences, for voices that speak one at a time."""

from __future__ import annotations

import re

SENTENCE_END = re.compile(r"""(?<=[.!?…])\s+|(?<=[.!?…]["'”’)\]])\s+|(?<=[。！？])\s*|\n+""")
CLAUSE_END = re.compile(r"(?<=[,;:–—])\s+|(?<=[、，；：])")
MIN_CHARS = 12  # shorter than any sentence worth a request of its own, longer than "Dr." or "e.g."
FIRST_CHARS = 80  # a first sentence beyond this is cut at a clause, so that sound comes early


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; a long first one as its clauses."""
    pieces = _joined(SENTENCE_END.split(text))
    if pieces and len(pieces[0]) > FIRST_CHARS:
        pieces[:1] = _joined(CLAUSE_END.split(pieces[0]))
    return pieces


def _joined(pieces: list[str]) -> list[str]:
    """The pieces without blanks; one too short to stand alone begins the next, the last ends its predecessor."""
    merged: list[str] = []
    for piece in filter(None, (piece.strip() for piece in pieces)):
        if merged and len(merged[-1]) < MIN_CHARS:
            merged[-1] += f" {piece}"
        else:
            merged.append(piece)
    if len(merged) > 1 and len(merged[-1]) < MIN_CHARS:
        merged[-2:] = [f"{merged[-2]} {merged[-1]}"]
    return merged
