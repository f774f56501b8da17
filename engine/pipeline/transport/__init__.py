"""HTTP/2 between the machines of a cluster: one server and one client, with TLS on both ends."""
