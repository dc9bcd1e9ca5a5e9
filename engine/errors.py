"""The engine's exceptions. Each message says what was found, what was expected and the remedy.

    PersonaStreamError          root of the tree
    ├── MediaError              a video or sound file cannot be used
    │   ├── NotAVideoError      it is no video
    │   ├── CorruptVideoError   it is a video that does not decode
    │   ├── ClipTooShortError   it is too short to enrol a speaker
    │   ├── StillPictureError   it is a photograph, or stands still
    │   ├── SpeechFormatError   a sample rate, channel count or encoding that the engine does not accept
    │   └── FaceError           the clip shows no face that an avatar can be made from
    │       ├── NoFaceError         no face
    │       ├── SeveralFacesError   more than one
    │       ├── FaceTooSmallError   too few pixels
    │       ├── YawTooLargeError    turned away too far
    │       └── MouthCoveredError   an object is before the mouth
    ├── AvatarFileError         an `.avatar` file is missing, damaged, of an unknown format, or made with other weights
    ├── WeightsError            a weights file is missing, damaged, or of another network
    ├── OutputError             an output file cannot be written
    ├── ExportError             a network cannot be written as ONNX, or the file's outputs differ from torch's
    ├── PlanError               a TensorRT plan cannot be built, loaded or run on this machine
    ├── DubbingError            the process that dubs a video crashed
    ├── EnrolmentError          the process that makes an avatar crashed
    ├── DependencyError         a library is missing, or differs from the versions that this package works with
    ├── ClusterError            a Ray cluster cannot be joined, or has no such node
    ├── DeviceError             the device is missing or cannot run the networks
    ├── SettingError            a setting on the command line is out of its range
    ├── UnknownAvatarError      no avatar has that name
    ├── SessionClosedError      the session has ended
    ├── CapacityError           the machine is full; retryable
    │   └── DrainingError       the server is shutting down and accepts nothing new; retryable
    └── ProtocolError           a client sent something that the speech protocol does not allow

Errors that only the server raises are in `streaming/errors.py`.
"""

from __future__ import annotations


class PersonaStreamError(Exception):
    """Root of the tree; `code` is its stable name in HTTP problems and websocket errors."""

    code = "internal"
    retryable = False  # whether the same request may succeed later, unchanged


class MediaError(PersonaStreamError):
    """A video or sound file cannot be used. `at_s`: the time of the fault in the file, None where it has none."""

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


class StillPictureError(MediaError):
    """The picture stands still: a photograph, a slide or a frozen film."""

    code = "still-picture"


class SpeechFormatError(MediaError):
    """Speech with a sample rate, channel count or encoding that the engine does not accept."""

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


class MouthCoveredError(FaceError):
    """A hand, a mug or a microphone is before the mouth."""

    code = "mouth-covered"


class AvatarFileError(PersonaStreamError):
    """An `.avatar` file is missing, damaged, of an unknown format, or made with other weights."""

    code = "avatar-file"


class WeightsError(PersonaStreamError):
    """A weights file is missing, damaged, or does not fit its network."""

    code = "weights"


class OutputError(PersonaStreamError):
    """An output file cannot be written."""

    code = "output"


class ExportError(PersonaStreamError):
    """A network cannot be written as ONNX, or the file's outputs differ from torch's."""

    code = "export"


class PlanError(PersonaStreamError):
    """A TensorRT plan cannot be built, loaded or run on this machine."""

    code = "plan"


class DubbingError(PersonaStreamError):
    """The process that dubs a video crashed, or was ended."""

    code = "dubbing"


class EnrolmentError(PersonaStreamError):
    """The process that makes an avatar crashed, or was ended."""

    code = "enrolment"


class DependencyError(PersonaStreamError):
    """A library is missing, or differs from the versions that this package works with."""

    code = "dependency"


class ClusterError(PersonaStreamError):
    """A Ray cluster cannot be joined, or has no such node."""

    code = "cluster"


class DeviceError(PersonaStreamError):
    """The device is missing, or cannot run the networks."""

    code = "device"


class SettingError(PersonaStreamError):
    """A setting on the command line is out of its range."""

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
    """The server is shutting down and accepts nothing new."""

    code = "draining"


class ProtocolError(PersonaStreamError):
    """A client sent something that the speech protocol does not allow."""

    code = "protocol"
