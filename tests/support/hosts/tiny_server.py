"""An MCP server that is nothing but a shell script, for the image of two megabytes of `docker_images`."""

from __future__ import annotations

import textwrap
from typing import Any

SCRIPT = textwrap.dedent(
    r"""
    cr=$(printf '\r')
    length=0
    IFS= read -r request || exit 0
    while IFS= read -r header; do
        header=${header%"$cr"}
        [ -n "$header" ] || break
        case $header in [Cc]ontent-[Ll]ength:*) length=${header#*: } ;; esac
    done
    answer() {
        printf 'HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' \
            "$1" "${#2}" "$2"
    }
    case $request in
        GET*) answer '405 Method Not Allowed' ''; exit ;;
        DELETE*) answer '200 OK' ''; exit ;;
    esac
    body=$(dd bs=1 count="$length" 2>/dev/null)
    id=${body#*\"id\":}
    [ "$id" != "$body" ] || { answer '202 Accepted' ''; exit; }
    id=${id%%[,\}]*}
    version=${body#*\"protocolVersion\"*:*\"}
    version=${version%%\"*}
    tool='{"name":"whoami","description":"the container","inputSchema":{"type":"object"}}'
    case $body in
        *'"initialize"'*)
            info='"serverInfo":{"name":"tiny","version":"'${VERSION:-1}'"}'
            result='{"protocolVersion":"'$version'","capabilities":{"tools":{}},'$info'}' ;;
        *'"tools/list"'*) result='{"tools":['$tool']}' ;;
        *'"tools/call"'*)
            while read -r mount; do
                case $mount in
                    */containers/*) self=${mount#*/containers/}; self=${self%%/*}; break ;;
                esac
            done </proc/self/mountinfo
            result='{"content":[{"type":"text","text":"'$self'"}]}' ;;
        *) result='{}' ;;
    esac
    answer '200 OK' '{"jsonrpc":"2.0","id":'"$id"',"result":'"$result"'}'
    """
).strip()
"""One connection: reads a request, answers, ends. The tool `whoami` tells the container's id."""


def spec(**changes: Any) -> dict[str, Any]:
    """What makes an MCPServer of the tiny image one."""
    command = ["nc", "-ll", "-p", "8000", "-e", "sh", "-c", SCRIPT]
    return {"command": command, "args": [], "resources": {"limits": {"memory": "32Mi", "cpu": "500m"}}, **changes}
