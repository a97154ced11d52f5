"""The wire protocol between a backend and a hub: sans-I/O, standard library only, shared by node and backend client.

Reading order: ``constants`` (every number), ``messages`` (what a message says), ``window`` (credits), ``framing`` (the
hot-path WebSocket codec), ``handshake`` (the two-stage handshake). ``docs/protocol.md`` is the full description.
"""
