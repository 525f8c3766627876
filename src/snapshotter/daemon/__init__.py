"""
The server.
"""
