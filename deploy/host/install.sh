#!/usr/bin/env bash
# Installs or upgrades DTMA and the gateway on this Docker host; safe to run again. Lies in the bundle that
# `make bundle` writes, beside the packages. What is to be applied in the cluster is the only standard output.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/magic-toolbox
state=/var/lib/magic-toolbox
config=/etc/magic-toolbox
runtime=/run/magic-toolbox
units=/etc/systemd/system
socket=/var/run/docker.sock

usage() {
  cat >&2 <<'USAGE'
usage: install.sh --name NAME --address ADDRESS [--address …] [option …]
       install.sh                       again: upgrades, with everything as it was
       install.sh --uninstall [--purge]

  --name NAME             name of the Toolbox in the cluster
  --address ADDRESS       DNS name or IP of this host; the first is what the cluster is told
  --namespace NAMESPACE   of the Toolbox (mcp-system)
  --gateway-user USER     runs the gateway; made if missing (toolbox-gateway)
  --gateway-workers N     (2)
  --management-port PORT  (30000)
  --gateway-port PORT     (30443)
  --bind ADDRESS          to listen on (all)
  --docker-url URL        Docker Engine API, if not the usual socket
  --python PATH           Python >= 3.11 to use
  --no-systemd            set everything up, but leave units and processes alone
  --check                 only say what is missing on this machine
  --uninstall             stop and remove programs and units; keys and state stay
  --purge                 with --uninstall: remove keys, state and the gateway's user, too
USAGE
}
say() { printf 'install: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

name= namespace= user= workers= management= gateway= bind= docker_url= python=
addresses=() systemd=yes action=install purge=
while [ $# -gt 0 ]; do
  case $1 in
    --name | --address | --namespace | --gateway-user | --gateway-workers | --management-port | --gateway-port | --bind | \
      --docker-url | --python) [ $# -ge 2 ] || { usage; exit 2; } ;;
  esac
  case $1 in
    --name) name=$2; shift 2 ;;
    --address) addresses+=("$2"); shift 2 ;;
    --namespace) namespace=$2; shift 2 ;;
    --gateway-user) user=$2; shift 2 ;;
    --gateway-workers) workers=$2; shift 2 ;;
    --management-port) management=$2; shift 2 ;;
    --gateway-port) gateway=$2; shift 2 ;;
    --bind) bind=$2; shift 2 ;;
    --docker-url) docker_url=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --no-systemd) systemd=; shift ;;
    --check) action=check; shift ;;
    --uninstall) action=uninstall; shift ;;
    --purge) purge=yes; shift ;;
    --help | -h) usage; exit 0 ;;
    *) say "unknown: $1"; usage; exit 2 ;;
  esac
done

find_python() {
  local candidate
  for candidate in ${python:-python3.11 python3 python3.12 python3.13 python3.14}; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

docker_answers() {
  "$1" - "$2" <<'PYTHON' 2>/dev/null
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.settimeout(5)
client.connect(sys.argv[1])
client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
answer = b""
while chunk := client.recv(4096):
    answer += chunk
sys.exit(not (answer.startswith(b"HTTP/1") and b" 200 " in answer.split(b"\r\n", 1)[0]))
PYTHON
}

missing() {
  [ "$(uname -s)" = Linux ] || echo "Linux: a toolbox host runs nowhere else"
  [ "$(id -u)" = 0 ] || echo "root: run it by sudo"
  local found
  found=$(find_python)
  if [ -z "$found" ]; then
    echo "Python >= 3.11 with its venv module (Debian: apt-get install python3 python3-venv)"
  elif [ -z "$docker_url" ] && ! docker_answers "$found" "$socket"; then
    echo "a Docker Engine that answers on $socket (Debian: apt-get install docker.io)"
  fi
  command -v iptables-restore >/dev/null || echo "iptables (Debian: apt-get install iptables)"
  if [ -e /proc/net/if_inet6 ] && ! command -v ip6tables-restore >/dev/null; then
    echo "ip6tables, because this machine has IPv6 (Debian: apt-get install iptables)"
  fi
  [[ $user =~ ^[0-9]+$ ]] || id "$user" >/dev/null 2>&1 || command -v useradd >/dev/null || echo "useradd, or a user $user made beforehand"
  if [ -n "$systemd" ] && ! [ -d /run/systemd/system ]; then
    echo "systemd as the machine's init; --no-systemd leaves starting the two processes to you"
  fi
  for part in own.txt requirements.txt own toolbox-dtma.service toolbox-gateway.service; do
    [ -e "$here/$part" ] || echo "$here/$part: run the script from the bundle that make bundle writes"
  done
}

check() {
  local lines
  lines=$(missing)
  [ -z "$lines" ] || { say "this machine lacks:"; printf '  - %s\n' "${lines//$'\n'/$'\n  - '}" >&2; exit 1; }
}

# What an earlier run decided, for options that were not given now.
recall() {
  [ -e "$state/host.json" ] || return 0
  local recalled
  recalled=$("$1" - "$state/host.json" <<'PYTHON'
import json, pwd, sys
record = json.load(open(sys.argv[1]))
try:
    user = pwd.getpwuid(record["gateway_uid"]).pw_name
except KeyError:
    user = str(record["gateway_uid"])
known = ("name", "namespace", "gateway_workers", "management_port", "gateway_port", "bind", "docker_url")
for value in (*(record.get(key) or "" for key in known), user, *record["addresses"]):
    print(value)
PYTHON
  ) || fail "$state/host.json cannot be read; see docs/backup.md"
  local lines
  mapfile -t lines <<<"$recalled"
  name=${name:-${lines[0]}} namespace=${namespace:-${lines[1]}} workers=${workers:-${lines[2]}}
  management=${management:-${lines[3]}} gateway=${gateway:-${lines[4]}} bind=${bind:-${lines[5]}}
  docker_url=${docker_url:-${lines[6]}} user=${user:-${lines[7]}}
  [ ${#addresses[@]} -gt 0 ] || addresses=("${lines[@]:8}")
}

make_user() {
  # A bare number needs no entry: an earlier run as containers may have chosen one.
  if [[ $user =~ ^[0-9]+$ ]]; then return 0; fi
  if ! id "$user" >/dev/null 2>&1; then
    say "making the user $user"
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
  fi
  ! id -nG "$user" | tr ' ' '\n' | grep -qx docker || fail "$user is in the group docker: the gateway must not be"
}

# One folder per release, named by what is in it; `current` points to the one in use.
install_release() {
  local release new previous other wheels=()
  release=$prefix/$(cat "$here/own.txt" "$here/requirements.txt" | sha256sum | cut -c 1-12)
  if ! [ -x "$release/bin/toolbox-dtma" ]; then
    say "installing into $release"
    rm -rf "$release"
    "$1" -m venv "$release"
    # Wheels in the bundle are for one Python; another one takes its own, with the same hashes, from its index.
    if [ -e "$here/python" ] && [ "$(cat "$here/python")" = "$("$1" -c \
      'import platform, sys; print("%d.%d %s" % (*sys.version_info[:2], platform.machine()))')" ]; then
      wheels=(--no-index --find-links "$here/wheels")
    fi
    local pip=("$release/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes)
    "${pip[@]}" "${wheels[@]}" -r "$here/requirements.txt" >&2 || { rm -rf "$release"; fail "the packages are not installed"; }
    "${pip[@]}" --no-index --find-links "$here/own" -r "$here/own.txt" >&2 || { rm -rf "$release"; fail "the package is not installed"; }
  fi
  new=$prefix/.current.$$
  ln -s "$release" "$new"
  previous=$(readlink "$prefix/current" 2>/dev/null || true)
  mv -T "$new" "$prefix/current"
  for other in "$prefix"/????????????; do
    [ "$other" = "$release" ] || [ "$other" = "$previous" ] || rm -rf "$other"
  done
}

initialise() {
  local options=(--state-dir "$state" --gateway-dir "$config/gateway" --runtime-dir "$runtime")
  options+=(--name "$name" --namespace "${namespace:-mcp-system}" --gateway-user "$user")
  local address
  for address in "${addresses[@]}"; do options+=(--address "$address"); done
  [ -z "$workers" ] || options+=(--gateway-workers "$workers")
  [ -z "$management" ] || options+=(--management-port "$management")
  [ -z "$gateway" ] || options+=(--gateway-port "$gateway")
  [ -z "$bind" ] || options+=(--bind "$bind")
  [ -z "$docker_url" ] || options+=(--docker-url "$docker_url")
  "$prefix/current/bin/toolbox-dtma" init "${options[@]}"
}

# Empty on a host that has none yet.
settings_of_gateway() { [ ! -e "$config/gateway/gateway.json" ] || sha256sum "$config/gateway/gateway.json" | cut -c 1-64; }

install_units() {
  local unit gateway_action=reload-or-restart
  for unit in toolbox-dtma.service toolbox-gateway.service; do
    sed "s/^\(User\|Group\)=toolbox-gateway$/\1=$user/" "$here/$unit" >"$units/.$unit.new"
    if [ "$unit" = toolbox-gateway.service ] && ! cmp -s "$units/.$unit.new" "$units/$unit"; then gateway_action=restart; fi
    mv "$units/.$unit.new" "$units/$unit"
  done
  # What a reload leaves as it was: unit, user, address and number of workers.
  [ "$settings_before" = "$(settings_of_gateway)" ] || gateway_action=restart
  systemctl daemon-reload
  systemctl --quiet enable toolbox-dtma.service toolbox-gateway.service
  # One after the other: agents go on while DTMA starts, and while the gateway's workers are replaced afterwards.
  systemctl restart toolbox-dtma.service
  systemctl "$gateway_action" toolbox-gateway.service
  for unit in toolbox-dtma.service toolbox-gateway.service; do
    systemctl --quiet is-active "$unit" || fail "$unit does not run: journalctl -u $unit"
  done
  say "toolbox-dtma.service and toolbox-gateway.service run"
}

uninstall() {
  [ "$(id -u)" = 0 ] || fail "run it as root"
  local left=()
  [ -d "$state/instances" ] && left=("$state"/instances/*.json)
  if [ ${#left[@]} -gt 0 ] && [ -e "${left[0]}" ] && [ -n "$purge" ]; then
    fail "servers still deployed here: ${#left[@]}; delete them in the cluster first (docs/uninstall.md)"
  fi
  if [ -n "$systemd" ] && [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now toolbox-gateway.service toolbox-dtma.service 2>/dev/null || true
    rm -f "$units/toolbox-dtma.service" "$units/toolbox-gateway.service"
    systemctl daemon-reload
  fi
  if [ -n "$purge" ]; then
    remove_firewall
    local owner
    owner=$(stat -c %U "$config/gateway" 2>/dev/null || true)
    rm -rf "$state" "$config" "$runtime"
    if [ "$owner" = toolbox-gateway ]; then userdel toolbox-gateway; fi
  fi
  rm -rf "$prefix"
  say "removed${purge:+, with keys and state}"
}

# The chains of this host, and the jumps to them; nobody else's.
remove_firewall() {
  [ -e "$state/host.json" ] || return 0
  local tag binary
  tag=$(sed -n 's/.*"host_id": *"\([^"]*\)".*/\1/p' "$state/host.json" | tr -d '\n' | sha256sum | cut -c 1-6)
  for binary in iptables ip6tables; do
    command -v "$binary-save" >/dev/null || continue
    local rules
    rules=$("$binary-save" -t filter 2>/dev/null | grep -e "MTB-$tag-" || true)
    [ -n "$rules" ] || continue
    {
      echo '*filter'
      sed -n "/-j MTB-$tag-/s/^-A/-D/p" <<<"$rules"
      sed -n 's/^:\(MTB-[^ ]*\).*/-F \1/p' <<<"$rules"
      sed -n 's/^:\(MTB-[^ ]*\).*/-X \1/p' <<<"$rules"
      echo COMMIT
    } | "$binary-restore" --noflush -w 5
  done
}

case $action in
  check) user=${user:-toolbox-gateway}; check; say "nothing is missing"; exit 0 ;;
  uninstall) uninstall; exit 0 ;;
esac
interpreter=$(find_python)
[ -z "$interpreter" ] || recall "$interpreter"
user=${user:-toolbox-gateway}
if [ -z "$name" ] || [ ${#addresses[@]} -eq 0 ]; then
  usage
  fail "give --name and --address the first time"
fi
check
make_user
mkdir -p "$prefix" "$config"
install_release "$interpreter"
settings_before=$(settings_of_gateway)
manifest=$(initialise)
if [ -n "$systemd" ]; then
  install_units
else
  say "not started (--no-systemd); as root:   $(sed -n 's/^ExecStart=//p' "$here/toolbox-dtma.service")"
  say "               and as $user: $(sed -n 's/^ExecStart=//p' "$here/toolbox-gateway.service")"
fi
say "apply in the cluster what follows (it holds the host's token): kubectl apply -f -"
printf '%s\n' "$manifest"
