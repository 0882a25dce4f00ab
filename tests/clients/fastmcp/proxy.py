"""FastMCP's proxy in front of one server: `python proxy.py URL PORT`."""

from __future__ import annotations

import sys

from fastmcp.server import create_proxy

KEEP_ALIVE_SECONDS = 75

if __name__ == "__main__":
    url, port = sys.argv[1:]
    create_proxy(url).run(
        transport="http",
        host="127.0.0.1",
        port=int(port),
        show_banner=False,
        log_level="error",
        uvicorn_config={"timeout_keep_alive": KEEP_ALIVE_SECONDS},
    )
