"""
Send streams.
"""
