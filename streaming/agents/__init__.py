"""The avatar in programs of others: a client, LiveKit, Pipecat."""
