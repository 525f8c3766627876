"""
Read-only inspection of an open store.
"""
