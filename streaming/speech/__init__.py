"""The websockets: speech in, units out."""
