"""One conversation without a network: speech in, MediaUnits out; many of them on one device."""
