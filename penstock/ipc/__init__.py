"""Messages to bytes, sockets, client and server. Knows no torch and no HTTP."""
