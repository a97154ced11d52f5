"""One WebSocket and what runs on it: links, sessions, streams, and the sockets at a stream's end.

Shared by the node (hub side) and the backend client; see ARCHITECTURE.md for the reading order.
"""
