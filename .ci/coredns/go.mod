module nexus-proxy/ci/coredns

go 1.25

require github.com/coredns/coredns v1.15.0
