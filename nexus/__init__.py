"""Nexus Proxy: a privacy-first passthrough proxy."""

__version__ = "0.1.0"
