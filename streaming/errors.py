"""Every exception that the server side raises on purpose, beside those of `engine.errors`."""

from __future__ import annotations

from engine.errors import CapacityError, PersonaStreamError


class QuotaError(CapacityError):
    """The client has had its share, whatever the machine has left."""

    code = "quota"

    def __init__(self, message: str, retry_after_s: int = CapacityError.retry_after_s):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PublishError(PersonaStreamError):
    """A broadcast cannot be sent or recorded where it was asked to."""

    code = "publish"


class VoiceError(PersonaStreamError):
    """Text could not be turned into speech."""

    code = "voice"


class VoiceAuthError(VoiceError):
    """A remote voice does not take our key."""

    code = "voice-auth"


class VoiceQuotaError(VoiceError):
    """A remote voice has had enough of us for now."""

    code = "voice-quota"
    retryable = True


class VoiceUnreachableError(VoiceError):
    """A remote voice cannot be reached, or is failing."""

    code = "voice-unreachable"
    retryable = True


class VoiceStalledError(VoiceError):
    """A voice stopped sending sound without an end."""

    code = "voice-stalled"
    retryable = True


class VoiceBrokenError(VoiceError):
    """A voice's connection or process ended in the middle of speech."""

    code = "voice-broken"
    retryable = True


class VoiceFormatError(VoiceError):
    """A voice sent something that is not the sound that was asked for."""

    code = "voice-format"


class SoundDeviceError(PersonaStreamError):
    """This machine's microphone or loudspeaker cannot be used."""

    code = "sound-device"
