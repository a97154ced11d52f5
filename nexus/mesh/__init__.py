"""Other nodes: links to them, what they serve, and the tunnels through them.

Reading order: ``routes`` and ``choice`` (who serves a name, and whom to ask), ``peer`` (one link), ``origin`` and
``destination`` (the two ends of a tunnel), ``announcer`` (what peers are told), ``mesh`` (all of it together),
``links`` (the sockets).
"""
