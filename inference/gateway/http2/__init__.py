"""HTTP/2 (RFC 9113) as a server speaks it: what it decides is pure, a connection moves the bytes. It knows no gRPC."""
