"""Every exception that the project raises on purpose.

A message says what was found, what was expected and what to do about it.
"""

from __future__ import annotations


class PersonaStreamError(Exception):
    """Root of the tree; `code` is the stable name used in HTTP problems and websocket errors."""

    code = "internal"
    retryable = False  # whether the same request may succeed later, unchanged


class MediaError(PersonaStreamError):
    """A video or sound file cannot be used. `at_s` is the place in the file, where there is one."""

    code = "media"

    def __init__(self, message: str, *, at_s: float | None = None):
        super().__init__(message if at_s is None else f"{message} (at {at_s:.2f} s)")
        self.at_s = at_s


class NotAVideoError(MediaError):
    code = "not-a-video"


class CorruptVideoError(MediaError):
    code = "corrupt-video"


class ClipTooShortError(MediaError):
    code = "clip-too-short"


class SpeechFormatError(MediaError):
    """Speech with a sample rate, channel count or encoding that the engine does not take."""

    code = "speech-format"


class FaceError(MediaError):
    """The clip shows no face that an avatar can be made from."""

    code = "face"


class NoFaceError(FaceError):
    code = "no-face"


class SeveralFacesError(FaceError):
    code = "several-faces"


class FaceTooSmallError(FaceError):
    code = "face-too-small"


class YawTooLargeError(FaceError):
    code = "yaw-too-large"


class AvatarFileError(PersonaStreamError):
    """An `.avatar` file is missing, damaged, of an unknown format, or made with other weights."""

    code = "avatar-file"


class WeightsError(PersonaStreamError):
    """A weights file is missing, damaged, or does not fit the network it was loaded into."""

    code = "weights"


class OutputError(PersonaStreamError):
    """A file that was asked for cannot be written."""

    code = "output"


class ExportError(PersonaStreamError):
    """A network cannot be written as ONNX, or what was written does not answer as torch does."""

    code = "export"


class PlanError(PersonaStreamError):
    """A TensorRT plan cannot be built, loaded or run on this machine."""

    code = "plan"


class DeviceError(PersonaStreamError):
    """The device that was asked for is not there, or does not take what it is to run."""

    code = "device"


class SettingError(PersonaStreamError):
    """A number on the command line is out of its range."""

    code = "setting"


class UnknownAvatarError(PersonaStreamError):
    code = "unknown-avatar"


class SessionClosedError(PersonaStreamError):
    code = "session-closed"


class CapacityError(PersonaStreamError):
    """The machine is full; trying again after `retry_after_s` may work."""

    code = "capacity"
    retryable = True
    retry_after_s = 5


class DrainingError(CapacityError):
    """The server shuts down and begins nothing new."""

    code = "draining"


class ProtocolError(PersonaStreamError):
    """A client sent something that the speech protocol does not allow."""

    code = "protocol"
