"""The exceptions of the server, beside those of `engine.errors`.

PersonaStreamError
├── CapacityError
│   ├── QuotaError
│   ├── StorageError
│   └── SpeechRefusedError
├── MediaError
│   └── TooLongError
├── TooLargeError
├── AvatarInUseError
├── AvatarExistsError
├── SessionClosedError
│   └── NodeLostError
├── FieldError
├── PublishError
├── VoiceError
│   ├── VoiceAuthError, VoiceQuotaError, VoiceUnreachableError
│   └── VoiceStalledError, VoiceBrokenError, VoiceFormatError
└── SoundDeviceError
"""

from __future__ import annotations

from engine.errors import CapacityError, MediaError, PersonaStreamError, SessionClosedError


class QuotaError(CapacityError):
    """The client has reached a limit of its own; the machine may have capacity left."""

    code = "quota"

    def __init__(self, message: str, retry_after_s: int = CapacityError.retry_after_s):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SpeechRefusedError(CapacityError):
    """More speech waits than a session keeps. Of `utterance`, `taken_samples` were taken before."""

    def __init__(self, message: str, utterance: str, taken_samples: int):
        super().__init__(message)
        self.utterance, self.taken_samples = utterance, taken_samples


class StorageError(CapacityError):
    """The server's disk has no room."""

    code = "storage"
    retry_after_s = 300


class TooLongError(MediaError):
    """A video or sound file is longer than this server takes."""

    code = "too-long"


class TooLargeError(PersonaStreamError):
    """An upload has more bytes than this server takes."""

    code = "request-entity-too-large"


class AvatarInUseError(PersonaStreamError):
    """An avatar cannot be unloaded while it has sessions."""

    code = "conflict"


class AvatarExistsError(PersonaStreamError):
    """An avatar of that name exists, or is being made."""

    code = "avatar-exists"


class NodeLostError(SessionClosedError):
    """The node of a cluster on which a session ran is gone, and the session with it."""

    code = "node-lost"


class FieldError(PersonaStreamError):
    """`cause` is about one field of a form."""

    def __init__(self, field: str, cause: PersonaStreamError):
        super().__init__(str(cause))
        self.field, self.cause, self.code = field, cause, cause.code


class PublishError(PersonaStreamError):
    """A broadcast cannot be sent to a destination or recorded in a file."""

    code = "publish"


class VoiceError(PersonaStreamError):
    """Text could not be turned into speech."""

    code = "voice"


class VoiceAuthError(VoiceError):
    """A remote voice refuses our key."""

    code = "voice-auth"


class VoiceQuotaError(VoiceError):
    """A remote voice refuses more requests at present."""

    code = "voice-quota"
    retryable = True


class VoiceUnreachableError(VoiceError):
    """A remote voice cannot be reached, or answers with server errors."""

    code = "voice-unreachable"
    retryable = True


class VoiceStalledError(VoiceError):
    """A voice stopped sending sound before its end."""

    code = "voice-stalled"
    retryable = True


class VoiceBrokenError(VoiceError):
    """A voice's connection or process ended before its speech did."""

    code = "voice-broken"
    retryable = True


class VoiceFormatError(VoiceError):
    """A voice sent data that is not sound in the requested format."""

    code = "voice-format"


class SoundDeviceError(PersonaStreamError):
    """This machine's microphone or loudspeaker cannot be used."""

    code = "sound-device"
