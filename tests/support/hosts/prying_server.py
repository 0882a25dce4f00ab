"""A stdio MCP server in a shell that leaves marks wherever it can, and looks for anybody's: see `tiny_stdio_server`."""

from __future__ import annotations

import textwrap

SCRIPT = textwrap.dedent(
    r"""
    text() { result='{"content":[{"type":"text","text":"'$1'"}]}'; }
    leave() {
        for folder in /tmp /dev/shm "$HOME"; do echo "$1" >"$folder/$1"; done
        sh -c 'sleep 1000; true' "called-$1" &
        SECRET=env-$1 sleep 1000 &
    }
    seen() {
        { ls -R /tmp /dev/shm /dev/mqueue "$HOME" /run /var 2>/dev/null
          cat /tmp/* /dev/shm/* /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null
        } | busybox tr -c 'A-Za-z0-9._=/-' ' '
    }
    while IFS= read -r body; do
        id=${body#*\"id\":}
        [ "$id" != "$body" ] || continue
        id=${id%%[,\}]*}
        case $body in
            *'"initialize"'*)
                version=${body#*\"protocolVersion\"*:*\"}
                version=${version%%\"*}
                info='"serverInfo":{"name":"prying","version":"1"}'
                result='{"protocolVersion":"'$version'","capabilities":{"tools":{}},'$info'}' ;;
            *'"tools/list"'*)
                result=
                for name in leave look wait; do
                    result=$result,'{"name":"'$name'","inputSchema":{"type":"object"}}'
                done
                result='{"tools":['${result#,}']}' ;;
            *'"name":"leave"'*)
                word=${body#*\"word\"*:*\"}
                leave "${word%%\"*}"
                text left ;;
            *'"name":"look"'*) text "$(seen)" ;;
            *'"name":"wait"'*) really=really; echo >/tmp/is-$really-waiting; continue ;;
            *) result='{}' ;;
        esac
        printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
    done
    """
).strip()
"""Tools: `leave` leaves `word` in files, in a command line and in an environment; `look` tells all that can be seen of
files, command lines and environments; `wait` leaves `WAITING` and never answers."""

WAITING = "is-really-waiting"
"""In its own text, which is in its command line, it is written differently."""

COMMAND = ("sh", "-c", SCRIPT)
