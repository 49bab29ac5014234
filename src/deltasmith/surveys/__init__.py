"""Streaming passes that tell an operation what it must know of a whole tensor or model before it can act."""
