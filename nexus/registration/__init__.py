"""Telling an orchestrator that this node is there, again and again."""
