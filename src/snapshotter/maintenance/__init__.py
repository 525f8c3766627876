"""
Maintenance of a store: diagnosis, repair, and the quarantine.
"""
