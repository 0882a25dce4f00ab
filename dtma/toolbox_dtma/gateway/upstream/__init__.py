"""An HTTP/1.1 client towards servers that may be hostile: strict about framing, with back-pressure, never a replay."""
