#!/bin/sh
# Wait until the CA and the DNS answer, and keep the CA's root certificate for those who verify what it issued. Pebble
# makes a new root at each start; the earlier ones are kept, so that what they signed stays good.
set -eu

poll() { # poll COMMAND...: until it works, at most 60 s
    for _ in $(seq 120); do
        "$@" >/tmp/last 2>&1 && return
        sleep 0.5
    done
    echo "gave up: $*" >&2
    cat /tmp/last >&2
    exit 1
}

poll curl --fail --silent --show-error --max-time 5 http://coredns:8181/ready
poll curl --fail --silent --show-error --max-time 5 --cacert /trust/ca.pem --output /tmp/root.pem https://pebble:15000/roots/0
touch /trust/roots.pem
chmod 0644 /trust/roots.pem
grep -qF "$(sed -n 2p /tmp/root.pem)" /trust/roots.pem || cat /tmp/root.pem >>/trust/roots.pem
