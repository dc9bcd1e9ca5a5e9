"""SSML (W3C, version 1.1) for voices that read plain text: its tags become what they mean, or go."""

from __future__ import annotations

import html
import re

NAMES = "speak|break|say-as|sub|p|s|emphasis|prosody|phoneme|voice|mark|audio|desc|lang|w|token|lexicon|meta(?:data)?"
TAG = re.compile(rf"</?(?:{NAMES}|[a-z]+:[a-z-]+)(?:\s[^<>]*)?/?>|<\?xml[^<>]*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
SPELLED = re.compile(
    r"<say-as\s[^<>]*interpret-as=[\"'](?:characters|spell-out|digits)[\"'][^<>]*>([^<>]*)</say-as>", re.IGNORECASE
)
REPLACED = re.compile(r"<sub\s[^<>]*alias=(?:\"([^\"<>]*)\"|'([^'<>]*)')[^<>]*>[^<>]*</sub>", re.IGNORECASE)
PAUSE = re.compile(r"<break(?:\s[^<>]*)?/?>|</?(?:p|s)(?:\s[^<>]*)?>", re.IGNORECASE)


def plain(text: str) -> str:
    """The words of a text. Breaks, paragraphs and sentences become lines, which voices pause between. What is to be
    spelled is spelled, and a substitution is made. Text without tags is returned as it is."""
    if not TAG.search(text):
        return text
    is_document = re.search(r"<speak[\s>]", text, re.IGNORECASE) is not None
    text = SPELLED.sub(lambda match: " ".join(match[1].replace(" ", "")), text)
    text = REPLACED.sub(lambda match: match[1] or match[2] or "", text)
    text = TAG.sub("", PAUSE.sub("\n", text))
    return html.unescape(text) if is_document else text
