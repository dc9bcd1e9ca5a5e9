"""Bytes to and from the outside: speech in over a websocket, pictures and sound out over WebRTC."""
