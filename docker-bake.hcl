# docker buildx bake            the image for both architectures, as nexus-proxy:dev
# docker buildx bake release    the same with attestations, pushed: IMAGE=ghcr.io/owner/nexus-proxy VERSION=1.2.3
# scripts/release.sh makes everything that a release holds.
variable "IMAGE" {
  default = "nexus-proxy"
}

variable "VERSION" {
  default = "dev"
}

variable "REVISION" {
  default = ""
}

group "default" {
  targets = ["image"]
}

target "image" {
  platforms = ["linux/amd64", "linux/arm64"]
  tags      = ["${IMAGE}:${VERSION}"]
  labels = {
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.revision" = REVISION
  }
}

target "release" {
  inherits = ["image"]
  tags     = ["${IMAGE}:${VERSION}", "${IMAGE}:latest"]
  attest   = ["type=provenance,mode=max", "type=sbom"]
  output   = ["type=registry"]
}
