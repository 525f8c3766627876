"""
Diagnosis and repair of a store.
"""
