"""The hub: accepts backends, checks their tokens, and opens streams on their sessions."""
