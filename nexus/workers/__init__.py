"""Several processes that are one node: each accepts clients and backends, and knows what the others serve.

A client that another worker's backend serves is handed to that worker with its socket; what has no socket, a tunnel of
a peer or a UDP flow, is relayed over a link between the two. See docs/decisions/0023-workers.md.
"""
