"""Text to speech: local voices and clients of remote ones, behind one protocol (`voice.Voice`)."""
