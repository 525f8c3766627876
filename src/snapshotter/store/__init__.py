"""
The store on disk and in memory, and the order of its durable steps.
"""
