"""
containerd's messages and our own; ``make proto`` generates the code from the .proto files.
"""
