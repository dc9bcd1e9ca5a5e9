"""Agent frameworks: a client of our server, LiveKit and Pipecat."""
