"""The hub's certificate from a certificate authority: obtained, kept, and renewed by ACME (RFC 8555).

Strategy: decisions (when to renew, when to try again, what an operator should do about a failure) are plain functions
on numbers and texts; the protocol is that of the library ``acme``, in a thread; what comes out is a file, which the
node follows like one that an operator wrote.
"""
