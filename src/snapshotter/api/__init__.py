"""
containerd's messages; all but this file and the .proto files is made from those by ``make proto``.
"""
