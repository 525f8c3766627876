"""
gRPC over HTTP/2 on unix sockets, by libnghttp2: sessions without I/O, statuses, and the client.
"""
