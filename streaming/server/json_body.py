"""JSON bodies of requests."""

from __future__ import annotations

import json

from engine.errors import ProtocolError


def text_field(body: bytes, name: str, value: str) -> str:
    """The text `name` of a JSON object; `value`: its word in messages. Raises ProtocolError for another body."""
    expected = f'expected {{"{name}": {value}}}'
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body is not JSON ({error}); {expected}") from error
    text = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        raise ProtocolError(f"the body has no {name}; {expected}, found {fields!r:.60}")
    return text
