"""WebRTC viewers: WHEP signalling, ICE paths, and the tracks that carry encoded units."""
