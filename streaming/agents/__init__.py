"""The avatar in agent frameworks: a client of our server, LiveKit, Pipecat."""
