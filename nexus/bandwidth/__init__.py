"""The node's bandwidth cap (``totalBandwidthMbps``), shared fairly by backends and, within one, by its streams."""
