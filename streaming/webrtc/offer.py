"""Offer: an SDP offer as clients write it, as aiortc can answer it, and the answer as the client expects it.

aiortc reads SDP as browsers write it and answers a section by all of it or fails. Here a section that cannot be served
is rejected (RFC 3264, section 6), and the others are played. Pure, no I/O.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from aiortc.codecs import CODECS
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcpeerconnection import find_common_codecs
from aiortc.sdp import MediaDescription, SessionDescription

from engine.errors import ProtocolError
from engine.media import FPS

# The exceptions of aiortc at a description that it cannot read or accept; its parser checks little.
BAD_DESCRIPTION = (
    *(ValueError, StopIteration, AssertionError, IndexError, KeyError, AttributeError, TypeError),
    *(InternalError, InvalidAccessError, InvalidStateError, OperationError),
)
SERVED = {
    "video": [codec for codec in CODECS["video"] if codec.mimeType.lower() in ("video/h264", "video/vp8")],
    "audio": [codec for codec in CODECS["audio"] if codec.mimeType.lower() == "audio/opus"],
}
EXPECTED = "video to receive in H.264 (constrained baseline, 42e01f, with packetization-mode 1) or VP8, sound in Opus"
# Attributes of the transport, which a bundled section may leave to the first of its bundle (RFC 9143, 7.1.3).
TRANSPORT = ("ice-ufrag", "ice-pwd", "fingerprint", "setup")
IGNORED = re.compile("a=(ssrc|ssrc-group|msid|imageattr|simulcast|rid)[: ]")  # of what the client would send
# Level, macroblocks of a frame and macroblocks of a second (H.264, table A-1)
H264_LEVELS = ((31, 3_600, 108_000), (32, 5_120, 216_000), (40, 8_192, 245_760), (42, 8_704, 522_240))
H264_LARGEST = ((50, 22_080, 589_824), (51, 36_864, 983_040), (52, 36_864, 2_073_600))


@dataclass
class _Section:
    """One m= line with its attributes; `mid` is given where the client gave none."""

    lines: list[str]
    mid: str = ""
    served: bool = False

    @property
    def kind(self) -> str:
        return self.lines[0][2:].partition(" ")[0]

    @property
    def off(self) -> bool:
        """Whether the client itself does not want it; port 0 of a bundled section means something else."""
        words = self.lines[0].split()
        return len(words) > 1 and words[1] == "0" and "a=bundle-only" not in self.lines

    def has(self, name: str) -> bool:
        return any(line.startswith(f"a={name}:") for line in self.lines)

    def attributes(self, names: tuple[str, ...]) -> list[str]:
        return [line for line in self.lines if line.startswith(tuple(f"a={name}:" for name in names))]

    def rejected(self) -> str:
        """The same section with port 0, for the answer."""
        words = self.lines[0].split(" ")
        words[1:2] = ["0"]
        return "\r\n".join([" ".join(words), "c=IN IP4 0.0.0.0", "a=inactive", f"a=mid:{self.mid}", ""])


@dataclass
class Offer:
    """A client's offer. Raises ProtocolError for one that cannot be read, or of which nothing can be served.

    local: the client is on this machine; else candidates that lead into it are left out.
    sdp: the served sections, for aiortc.  kinds: of them, audio and video alone.  unresolved: (mid, candidate) of hosts
    that have names, which take time to resolve.
    """

    text: str
    local: bool = True
    sdp: str = ""
    kinds: list[str] = field(default_factory=list)
    unresolved: list[tuple[str, str]] = field(default_factory=list)
    _sections: list[_Section] = field(default_factory=list)

    def __post_init__(self) -> None:
        head, self._sections = _split(self.text)
        self._name_sections()
        self._share_transport(head)
        descriptions = self._parse(head)
        self._choose(descriptions)
        served = [section for section in self._sections if section.served]
        self._take_names_out(served)
        bundle = [line for line in head if line.startswith("a=group:BUNDLE")]
        left_out = {section.mid for section in self._sections if not section.served}
        for line in bundle:
            mids = [mid for mid in line.split()[1:] if mid not in left_out]
            head[head.index(line)] = " ".join(["a=group:BUNDLE", *mids])
        self.sdp = _joined(head, served)

    def answer(self, sdp: str, width: int, height: int) -> str:
        """The client's answer from aiortc's: with the sections that are rejected, and the level of the pictures."""
        head, *answered = re.split("^(?=m=)", sdp, flags=re.MULTILINE)
        answers = iter(answered)
        sections = [next(answers) if each.served else each.rejected() for each in self._sections]
        level = f"{h264_level(width, height):02x}"
        return re.sub("(profile-level-id=[0-9a-fA-F]{4})[0-9a-fA-F]{2}", rf"\g<1>{level}", head + "".join(sections))

    def _name_sections(self) -> None:
        for number, section in enumerate(self._sections):
            section.mid = next((line[6:].strip() for line in section.lines if line.startswith("a=mid:")), "")
            if not section.mid:
                section.mid = f"section{number}"
                section.lines.append(f"a=mid:{section.mid}")
        mids = [section.mid for section in self._sections]
        if len(set(mids)) < len(mids):
            raise ProtocolError(f"the sections of the offer have a=mid {mids}; expected a different one for each")

    def _share_transport(self, head: list[str]) -> None:
        """Give the transport of a bundle's first section to those that leave it out."""
        for line in head:
            bundled = line.split()[1:] if line.startswith("a=group:BUNDLE") else []
            sections = {section.mid: section for section in self._sections}
            if unknown := set(bundled) - set(sections):
                raise ProtocolError(f"the offer bundles {unknown}; its sections have a=mid {list(sections)}")
            for mid in bundled[1:]:
                first, section = sections[bundled[0]], sections[mid]
                missing = tuple(name for name in TRANSPORT if not section.has(name))
                section.lines += first.attributes(missing)
                if first.has("candidate") and not section.has("candidate"):
                    section.lines += first.attributes(("candidate",))

    def _parse(self, head: list[str]) -> list[MediaDescription]:
        try:
            return SessionDescription.parse(_joined(head, self._sections)).media
        except BAD_DESCRIPTION as error:
            raise ProtocolError(
                f"the body's {len(self.text)} characters do not parse as SDP ({error!r}); expected an offer"
            ) from error

    def _choose(self, descriptions: list[MediaDescription]) -> None:
        """Serve the sections that a viewer can have: one of each kind. Raises ProtocolError if none is left."""
        media = [each for each in descriptions if each.kind in SERVED]
        if not media:
            raise ProtocolError(f"the offer has no media; expected {EXPECTED}")
        for section, description in zip(self._sections, descriptions, strict=True):
            if section.off:
                continue
            if description.kind == "application":
                section.served = "a=sctp-port:" in "\n".join(section.lines)
            elif description.kind in SERVED and find_common_codecs(SERVED[description.kind], description.rtp.codecs):
                live = description.direction != "inactive"
                if live and description.direction == "sendonly":
                    raise ProtocolError(f"the offer sends {description.kind}; a viewer receives (a=recvonly)")
                section.served = not live or description.kind not in self.kinds
                self.kinds += [description.kind] if live and section.served else []
        if not self.kinds:
            raise ProtocolError(f"the offer has {', '.join(map(described, media))}; expected {EXPECTED}")

    def _take_names_out(self, served: list[_Section]) -> None:
        for section in served:
            named = [line for line in section.attributes(("candidate",)) if not _has_address(line)]
            self.unresolved += [(section.mid, line.partition(":")[2]) for line in named if ".local " in line]
            inside = [] if self.local else [line for line in section.attributes(("candidate",)) if is_internal(line)]
            section.lines = [line for line in section.lines if line not in named and line not in inside]
        if self.unresolved:  # they come after the others, so the others are not all
            for section in served:
                section.lines = [line for line in section.lines if line != "a=end-of-candidates"]


def h264_level(width: int, height: int) -> int:
    """level_idc of pictures of this size at 25 fps, 3.1 at least."""
    macroblocks = -(-width // 16) * -(-height // 16)
    fitting = (
        level
        for level, frame, second in (*H264_LEVELS, *H264_LARGEST)
        if macroblocks <= frame and macroblocks * FPS <= second
    )
    return next(fitting, H264_LARGEST[-1][0])


def described(section: MediaDescription) -> str:
    """The codecs of a section, for people: `video H264 640c1f, packetization-mode 0`."""
    codecs = []
    for codec in section.rtp.codecs:
        if codec.name.lower() in ("rtx", "red", "ulpfec", "flexfec-03"):
            continue
        parameters = codec.parameters
        profile = f" {parameters['profile-level-id']}" if "profile-level-id" in parameters else ""
        mode = f", packetization-mode {parameters.get('packetization-mode', 0)}" if codec.name.upper() == "H264" else ""
        codecs.append(f"{codec.name}{profile}{mode}"[:60])
    turned_off = " (turned off)" if section.port == 0 or section.direction == "inactive" else ""
    return f"{section.kind}{turned_off} in {' or '.join(codecs[:8]) or 'no codec that it names'}"


def _split(text: str) -> tuple[list[str], list[_Section]]:
    """The session's lines and the sections of a description."""
    head: list[str] = []
    sections: list[_Section] = []
    for line in map(_cleaned, text.splitlines()):
        if line.startswith("m="):
            sections.append(_Section([line]))
        elif line and not IGNORED.match(line):
            (sections[-1].lines if sections else head).append(line)
    for section in sections:
        section.lines = _readable(section.lines)
    return head, sections


def _cleaned(line: str) -> str:
    """The line with the white space that RFC 8866 and the payload formats allow and aiortc does not expect."""
    line = line.rstrip()
    if match := re.match(r"a=fmtp:\s*(\d+)\s+(.*)", line):
        parameters = [parameter.partition("=") for parameter in match[2].split(";") if parameter.strip()]
        return f"a=fmtp:{match[1]} " + ";".join(
            f"{name.strip().lower()}{equals}{value.strip()}" for name, equals, value in parameters
        )
    if match := re.match(r"a=rtpmap:\s*(\d+)\s+(\S+)", line):
        return f"a=rtpmap:{match[1]} {match[2]}"
    if match := re.match(r"a=extmap:\s*(\S+)\s+(\S+)", line):  # without the extension's own attributes
        return f"a=extmap:{match[1]} {match[2]}"
    return line


def _readable(lines: list[str]) -> list[str]:
    """The section without parameters of formats that it does not map, and with those of H.264 that it leaves out.

    Without packetization-mode H.264 would have one NAL unit a packet (RFC 6184, 8.1). Receivers that write nothing
    (GStreamer by default) read fragments all the same; where another format of the section has mode 1, that is used.
    """
    mapped = {match[1]: match[2].upper() for line in lines if (match := re.match(r"a=rtpmap:(\d+) ([^/\s]+)", line))}
    parameters = {match[1]: match[2] for line in lines if (match := re.match(r"a=fmtp:(\d+) ?(.*)", line))}
    h264 = [number for number, name in mapped.items() if name == "H264"]
    whole = any("packetization-mode=1" in parameters.get(number, "") for number in h264)
    kept = [line for line in lines if not line.startswith("a=fmtp:")]
    for number in h264:
        if not whole and "packetization-mode" not in parameters.get(number, ""):
            given = parameters.get(number) or "profile-level-id=42e01f"
            parameters[number] = f"{given};packetization-mode=1"
    return kept + [f"a=fmtp:{number} {text}" for number, text in parameters.items() if number in mapped and text]


def is_internal(candidate: str) -> bool:
    """Whether a candidate is an address that means this machine, or its link: no client outside is there."""
    try:
        address = ipaddress.ip_address(candidate.split()[4])
    except (ValueError, IndexError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _has_address(candidate: str) -> bool:
    """Whether the host of an a=candidate line is an address; True for a line that does not parse."""
    words = candidate.split()
    if len(words) < 5:
        return True
    try:
        ipaddress.ip_address(words[4])
    except ValueError:
        return False
    return True


def _joined(head: list[str], sections: list[_Section]) -> str:
    return "".join(f"{line}\r\n" for line in [*head, *(line for section in sections for line in section.lines)])
