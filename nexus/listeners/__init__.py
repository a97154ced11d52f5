"""Public listeners: accept a client, peek at its first bytes, and hand it to whoever carries its stream."""
