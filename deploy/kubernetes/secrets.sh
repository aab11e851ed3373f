#!/usr/bin/env bash
# Prints the Secrets that the manifests name, with passwords made up on the spot; nothing is kept anywhere:
#
#     deploy/kubernetes/secrets.sh                          | kubectl apply --namespace headrace -f -
#     deploy/kubernetes/secrets.sh rediss://user:password@host:6379/0 | kubectl apply --namespace headrace -f -
#
# With a URL the jobs are kept there, else in the Redis of components/jobs-redis. Running it again makes new
# passwords: the Redis servers have to be restarted then, and the RayService built anew.
set -euo pipefail

password() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

secret() { # name, key=value …
  local name=$1 pair
  shift
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels: {app.kubernetes.io/part-of: headrace}\ntype: Opaque\ndata:\n' "$name"
  for pair in "$@"; do printf '  %s: %s\n' "${pair%%=*}" "$(printf %s "${pair#*=}" | base64 --wrap=0)"; done
}

jobs=$(password)
gcs=$(password)
url=${1:-redis://:$jobs@headrace-redis:6379/0}

secret headrace-redis url="$url" password="$jobs" auth.conf="requirepass $jobs"
secret headrace-gcs-redis password="$gcs" auth.conf="requirepass $gcs"
secret headrace-ray-token auth_token="$(password)"
