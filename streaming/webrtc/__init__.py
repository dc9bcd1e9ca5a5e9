"""Viewers over WebRTC."""
