"""The operator's view of a running node: health, readiness and metrics over HTTP on loopback or a Unix socket."""
