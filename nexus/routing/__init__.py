"""Who serves a name: pools of members, the table of claims, and the decision for one connection."""
