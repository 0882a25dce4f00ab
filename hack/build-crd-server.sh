#!/usr/bin/env bash
# Builds the CRD server of Kubernetes 1.36 (apiextensions-apiserver v0.36): the part of the API server that
# checks structural schemas, CEL rules and unknown fields. `make test-crds` runs the CRDs against it.
#
#   build-crd-server.sh [--print]     prints the path of the binary; --print only says where it would be
#
# Needs Debian (or a derivative with Debian's archive keyring) and about 400 MB of downloads, once: the Go
# compiler and the Kubernetes libraries come as packages of Debian sid, are unpacked into a temporary
# folder and never installed. MAGIC_TOOLBOX_CACHE moves the cache, DEBIAN_MIRROR overrides the mirror.
set -euo pipefail

series=0.36
libraries=golang-k8s-apiextensions-apiserver-dev
cache=${MAGIC_TOOLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/magic-toolbox}/crd-server-$series
binary=$cache/apiextensions-apiserver

say() { printf '%s crd-server: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ "${1:-}" = --print ]; then echo "$binary"; exit 0; fi

mkdir -p "$cache"
# Two test runs at once build once: the second waits for the first and finds the binary.
exec 9>"$cache/.lock"
flock 9
if [ -x "$binary" ]; then echo "$binary"; exit 0; fi

for tool in apt-get dpkg-deb flock; do
  command -v "$tool" >/dev/null || fail "needs $tool (Debian); elsewhere build k8s.io/apiextensions-apiserver v$series and put it at $binary"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || fail "needs $keyring: apt-get install debian-archive-keyring"

# The first archive the machine itself is configured with, so that a local mirror is respected.
mirror=${DEBIAN_MIRROR:-$(apt-get --print-uris update 2>/dev/null | sed -n "s|^'\(.*/debian\)/dists/.*|\1|p" | head -n 1)}
[ -n "$mirror" ] || fail "no Debian archive in the apt sources: set DEBIAN_MIRROR to one"

work=$(mktemp -d "${TMPDIR:-/tmp}/crd-server.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/tree"
: >"$work/state/status"
echo "deb [signed-by=$keyring] $mirror sid main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Debug::NoLocking "true";
CONF
apt() { APT_CONFIG=$work/apt.conf apt-get -qq "$@"; }

say "1/4 package lists of Debian sid"
apt update
version=$(APT_CONFIG=$work/apt.conf apt-cache show "$libraries" | sed -n 's/^Version: *//p' | head -n 1)
case $version in
  "$series".*) ;;
  *) fail "Debian sid has $libraries $version, this script builds $series: raise 'series' and run make test-crds" ;;
esac
say "2/4 downloading the Go compiler and $libraries $version (about 400 MB)"
apt install -y --download-only "$libraries" golang-go >/dev/null
say "3/4 unpacking"
for package in "$work"/cache/archives/*.deb; do
  case ${package##*/} in golang-* | *-dev_*) dpkg-deb -x "$package" "$work/tree" ;; esac
done
goroot=$(find "$work/tree/usr/lib" -maxdepth 1 -name 'go-1.*' | sort -V | tail -n 1)
say "4/4 compiling (about 4 minutes on 2 cores)"
while sleep 30; do say "still compiling"; done &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || true; rm -rf "$work"' EXIT
env -u GOFLAGS GOROOT="$goroot" GOPATH="$work/tree/usr/share/gocode" GO111MODULE=off CGO_ENABLED=0 \
  GOCACHE="$work/gocache" GOTMPDIR="$work" \
  nice -n 5 "$goroot/bin/go" build -trimpath -ldflags "-s -w" -o "$work/built" k8s.io/apiextensions-apiserver
install -m 0755 "$work/built" "$binary.new"
mv "$binary.new" "$binary"
say "done: $binary"
echo "$binary"
