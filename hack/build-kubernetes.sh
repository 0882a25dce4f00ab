#!/usr/bin/env bash
# Builds kube-apiserver and kube-controller-manager (1.20.2) from Debian 12's source package, and takes etcd from
# its binary package. For machines that reach a Debian mirror but no release downloads. Needs no root: compiler,
# libraries and sources are unpacked into a work folder, nothing is installed on the system.
#
#   hack/build-kubernetes.sh DEST        DEST gets etcd, kube-apiserver, kube-controller-manager
set -euo pipefail

dest=${1:?usage: build-kubernetes.sh DEST}
version=1.20.5+really1.20.2-1.1+deb12u1
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
work=$(mktemp -d "$dest/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say() { printf '%s\n' "$*"; }

for tool in apt-get dpkg-deb dpkg-source make gcc rsync; do
  command -v "$tool" >/dev/null || missing="${missing:-} $tool"
done
if [ -n "${missing:-}" ]; then
  [ "$(id -u)" = 0 ] || { say "missing:$missing; run: sudo apt-get install dpkg-dev make gcc libc6-dev rsync" >&2; exit 1; }
  say "installing the build tools:$missing"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends dpkg-dev make gcc libc6-dev rsync >/dev/null
fi

# A private apt: its own lists and cache, the machine's own mirror and keyring.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | awk '/\/debian\/?$/ && !found { found = $0 } END { print found }')
[ -n "$mirror" ] || { say "no Debian mirror among the apt sources" >&2; exit 1; }
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,root}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for kind in deb deb-src; do echo "$kind [signed-by=$keyring] $mirror bookworm main"; done > "$work/sources.list"
private_apt() {
  apt-get -qq -oDir::Etc::SourceList="$work/sources.list" -oDir::Etc::SourceParts=/dev/null \
    -oDir::State::Lists="$work/lists" -oDir::Cache="$work/cache" -oAPT::Sandbox::User="$(id -un)" "$@"
}
say "reading the package lists"
private_apt update
say "fetching etcd, the Go compiler and the Kubernetes sources"
# reflect2: the copy inside 1.20 crashes when compiled by Go >= 1.18; Debian packages the repaired release.
(cd "$work/debs" && private_apt download etcd-server golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev)
(cd "$work" && private_apt source --download-only "kubernetes=$version")
say "unpacking"
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
dpkg-source --no-check -x "$work"/kubernetes_*.dsc "$work/kubernetes" >/dev/null

export GOROOT=$work/root/usr/lib/go-1.19 GOCACHE=$work/gocache GOFLAGS=
export PATH=$GOROOT/bin:$PATH
# The compiler spends much of its time collecting garbage; where memory is plenty it need not.
if awk '/^MemAvailable:/ { exit !($2 > 6000000) }' /proc/meminfo; then export GOGC=400; fi

cd "$work/kubernetes"
target=vendor/github.com/modern-go/reflect2
find "$target" -maxdepth 1 \( -name '*.go' -o -name '*.s' \) -delete
find "$work/root/usr/share/gocode/src/github.com/modern-go/reflect2" -maxdepth 1 \
  \( -name '*.go' -o -name '*.s' \) ! -name '*_test.go' -exec cp {} "$target/" \;

say "compiling kube-apiserver and kube-controller-manager (a few minutes)"
export FORCE_HOST_GO=y KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=clean
export KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
make WHAT="cmd/kube-apiserver cmd/kube-controller-manager" GOFLAGS= GOLDFLAGS="-s -w" 2>&1
for part in kube-apiserver kube-controller-manager; do
  install -m 0755 "_output/local/bin/linux/$(go env GOARCH)/$part" "$dest/$part"
done
install -m 0755 "$work/root/usr/bin/etcd" "$dest/etcd"
say "built: $dest"
