"""The command line ``nexus``: commands parse, call into ``nexus`` and ``backend_client``, and print."""
