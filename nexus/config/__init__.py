"""The node's configuration: ``load_node_config`` turns a file into a ``NodeConfig`` by the table in ``keys``."""
