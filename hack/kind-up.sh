#!/usr/bin/env bash
# A kind cluster with the dev overlay: CRDs, operator (the image of `make images`) and a PostgreSQL that forgets.
# Toolbox hosts are outside of it; this machine can be one: docs/install.md, "Hosts".
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in kind kubectl docker; do
  command -v "$tool" >/dev/null || { echo "kind-up: $tool is not on the PATH" >&2; exit 1; }
done
image=localhost/magic-toolbox/operator:dev
docker image inspect "$image" >/dev/null 2>&1 || { echo "kind-up: no image $image: run make images" >&2; exit 1; }

kind get clusters | grep -qx magic-toolbox || kind create cluster --config manifests/kind/cluster.yaml
kind load docker-image --name magic-toolbox "$image"
context=kind-magic-toolbox
kubectl kustomize manifests/overlays/dev | kubectl --context "$context" apply -f -
# Another image under the same name starts no rollout by itself.
kubectl --context "$context" -n magic-toolbox-system rollout restart deployment/magic-toolbox-operator
kubectl --context "$context" -n magic-toolbox-system rollout status --timeout=180s deployment/magic-toolbox-operator

gateway=$(docker network inspect kind --format '{{range .IPAM.Config}}{{.Gateway}} {{end}}' | tr ' ' '\n' | grep -m 1 '\.' || true)
echo "The cluster is up: kubectl --context $context get tbx,mcps,amc -A"
echo "Its pods reach this machine as ${gateway:-the gateway of the Docker network kind}: give that to install.sh as --address to make it a toolbox host."
