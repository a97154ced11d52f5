"""TLS of the hub and of those who dial it: contexts, certificates, renewal.

Clients' TLS is never here: their bytes pass through unread.
"""
