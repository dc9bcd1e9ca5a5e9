"""Publishing: a session is encoded once, and sent to destinations: files, RTMP, SRT, WHIP."""
