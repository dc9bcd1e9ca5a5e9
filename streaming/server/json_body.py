"""JSON bodies of requests."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from engine.errors import ProtocolError


def text_field(body: bytes, name: str, value: str) -> str:
    """The text `name` of a JSON object; `value`: its word in messages. Raises ProtocolError for another body."""
    expected = f'expected {{"{name}": {value}}}'
    fields = _parsed(body, expected)
    text = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        raise ProtocolError(f"the body has no {name}; {expected}, found {fields!r:.60}")
    return text


def fields_of(body: bytes, names: Collection[str]) -> dict[str, str]:
    """A JSON object of texts, at least one, with some of these names. Raises ProtocolError for another body."""
    expected = f"expected a JSON object with {' or '.join(names)}, each a text"
    fields = _parsed(body, expected)
    fits = isinstance(fields, dict) and fields and set(fields) <= set(names)
    if not fits or not all(isinstance(text, str) for text in fields.values()):
        raise ProtocolError(f"{expected}, found {fields!r:.60}")
    return dict(fields)


def _parsed(body: bytes, expected: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body is not JSON ({error}); {expected}") from error
