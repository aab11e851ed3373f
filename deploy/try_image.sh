#!/usr/bin/env bash
# Builds the image where there is no container engine and no registry, and starts a Ray head in it as Kubernetes would:
# user 1000, a read-only root, the token on, and KubeRay's own questions. As root, on Debian:
#
#     apt-get install --no-install-recommends buildah debootstrap && deploy/try_image.sh [folder]
#
# In place of python:3.11-slim-bookworm stands Debian 12 itself, which has the same Python. PIP_CONF may name a pip.conf
# for the build, and WHEELS a folder that it looks in. Takes about six minutes and 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d /tmp/headrace-image-XXXXXX)}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' clients/headrace/_version.py)
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
b() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }

if ! b inspect --type image localhost/debian-python > /dev/null 2>&1; then
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" \
    http://deb.debian.org/debian > "$work/debootstrap.log"
  container=$(b from scratch)
  tar -C "$work/root" -c . > "$work/root.tar"
  b add --quiet "$container" "$work/root.tar" /
  b commit --quiet --rm "$container" localhost/debian-python
  rm -r "$work/root" "$work/root.tar"
fi

mounts=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
[ -z "${PIP_CONF:-}" ] || mounts+=(--volume "$PIP_CONF:/etc/pip.conf:ro")
[ -z "${WHEELS:-}" ] || mounts+=(--volume "$WHEELS:$WHEELS:ro")
b bud --network host "${mounts[@]}" --build-arg PYTHON_IMAGE=localhost/debian-python \
  --build-arg TORCH_INDEX_URL="${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}" \
  --target cpu --tag "localhost/headrace-cpu:$version" --file deploy/Dockerfile .
b images "localhost/headrace-cpu:$version"

container=$(b from "localhost/headrace-cpu:$version")
ROOT=$(b mount "$container") unshare --net --pid --mount --ipc --fork --kill-child bash -s << 'POD'
set -euo pipefail
mount --make-rprivate /
root=$(mktemp -d) && touch "$ROOT/etc/hosts"
mount --bind "$ROOT" "$root" && mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --bind /etc/hosts "$root/etc/hosts"
for folder in tmp home/headrace cache; do mount -t tmpfs -o mode=0770,uid=1000,gid=1000 tmpfs "$root/$folder"; done
ip link set lo up
chroot --userspec=1000:1000 "$root" /usr/bin/env -i HOME=/home/headrace PATH=/opt/headrace/bin:/usr/bin:/bin \
  XDG_CACHE_HOME=/cache PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token \
  RAY_AUTH_TOKEN="$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')" RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=3 /bin/bash -c '
    cd
    if touch /written 2> /dev/null; then echo "the root can be written"; exit 1; fi
    headrace --help > /dev/null
    python -c "import headrace_workers, pathlib; p = pathlib.Path(headrace_workers.__file__).parent; [_] = p.rglob(\"*.so\")"
    ray start --head --block --num-cpus=0 --no-monitor --object-store-memory=100000000 --dashboard-host=0.0.0.0 \
      --metrics-export-port=8080 --dashboard-agent-listen-port=52365 > /tmp/head.log 2>&1 &
    for attempt in $(seq 90); do
      sleep 1
      if wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep -q success \
          && wget --tries 1 -T 10 -q -O- http://localhost:8265/api/gcs_healthz | grep -q success; then
        echo "ready after $attempt s, as user $(id -u), on a read-only root"
        exit 0
      fi
    done
    cat /tmp/head.log
    exit 1'
POD
b rm "$container" > /dev/null
