#!/usr/bin/env bash
# Make in DIR everything that a release holds: scripts/release.sh DIR
#   nexus_proxy-VERSION-py3-none-any.whl, nexus_proxy-VERSION.tar.gz   wheel and source
#   nexus-proxy-VERSION.oci.tar                                        the image for amd64 and arm64 (docker load, skopeo)
#   nexus-proxy-VERSION-ARCH.cdx.json                                  what is in each (CycloneDX)
#   SHA256SUMS                                                         checksums of all of them, as scripts/install.sh wants
# Needs uv, and Docker with buildx, the containerd image store, and an emulator for the other architecture. Every image
# is started before it counts.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -eq 1 ] || {
    echo "usage: scripts/release.sh DIR" >&2
    exit 2
}
mkdir -p "$1"
out=$(cd "$1" && pwd)
VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' nexus/__init__.py)
REVISION=$(git rev-parse HEAD)
export VERSION REVISION
image=nexus-proxy:$VERSION

list_packages="import importlib.metadata as m
for found in sorted({(d.name, d.version) for d in m.distributions()}): print('=='.join(found))"

sbom() { # sbom ARCHITECTURE: of the Python packages that are in the image
    docker run --rm --platform "linux/$1" --entrypoint python3 "$image" -c "$list_packages" >"$out/packages"
    uvx --quiet --from 'cyclonedx-bom>=7' cyclonedx-py requirements --output-reproducible --spec-version 1.6 \
        --output-file "$out/nexus-proxy-$VERSION-$1.cdx.json" "$out/packages"
    rm "$out/packages"
}

uv build --quiet --out-dir "$out"
rm -f "$out/.gitignore"
docker buildx bake --progress plain image
docker buildx bake --progress plain --set "image.output=type=oci,dest=$out/nexus-proxy-$VERSION.oci.tar" image
for arch in amd64 arm64; do
    machine=$(docker run --rm --platform "linux/$arch" --entrypoint uname "$image" -m)
    echo "$arch ($machine): $(docker run --rm --platform "linux/$arch" "$image" demo --once --json | grep '"ok"')"
    sbom "$arch"
done
(cd "$out" && sha256sum -- *.whl *.tar.gz *.tar *.json >SHA256SUMS)
cat "$out/SHA256SUMS"
