"""A stdio MCP server that is nothing but a shell script, for the image of two megabytes of `docker_images`."""

from __future__ import annotations

import textwrap

SCRIPT = textwrap.dedent(
    r"""
    calls=0
    text() { result='{"content":[{"type":"text","text":"'$1'"}]}'; }
    while IFS= read -r body; do
        id=${body#*\"id\":}
        [ "$id" != "$body" ] || continue
        id=${id%%[,\}]*}
        case $body in
            *'"initialize"'*)
                version=${body#*\"protocolVersion\"*:*\"}
                version=${version%%\"*}
                info='"serverInfo":{"name":"tiny-stdio","version":"'${VERSION:-1}'"}'
                result='{"protocolVersion":"'$version'","capabilities":{"tools":{}},'$info'}' ;;
            *'"tools/list"'*)
                result=
                for name in whoami count exit; do
                    result=$result,'{"name":"'$name'","inputSchema":{"type":"object"}}'
                done
                result='{"tools":['${result#,}']}' ;;
            *'"name":"whoami"'*)
                while read -r mount; do
                    case $mount in
                        */containers/*) self=${mount#*/containers/}; self=${self%%/*}; break ;;
                    esac
                done </proc/self/mountinfo
                text "$self" ;;
            *'"name":"count"'*) calls=$((calls + 1)); text "$calls" ;;
            *'"name":"exit"'*) echo 'asked to exit' >&2; exit 3 ;;
            *) result='{}' ;;
        esac
        printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
    done
    """
).strip()
"""Tools: `whoami` tells the container's id, `count` the calls in this process so far, `exit` ends it with code 3."""

COMMAND = ("sh", "-c", SCRIPT)
