#!/bin/sh
# Everything the lab trusts or keeps secret, made once for each lab: the certificate of Pebble's own server, signed by a
# CA of the lab, and the secret that backends sign their tokens with.
#   /trust          ca.pem: the CA of Pebble's own server (public)
#   /pebble-tls     its certificate and key
#   /secrets        the secret, for the user of the nodes and backend clients alone
set -eu

nexus_user=65532

if [ ! -e /pebble-tls/key.pem ]; then
    umask 077
    work=$(mktemp -d)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=The lab's CA" \
        -keyout "$work/ca.key" -out "$work/ca.pem" 2>"$work/log" || { cat "$work/log"; exit 1; }
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=pebble" \
        -addext "subjectAltName=DNS:pebble,DNS:localhost" -addext "basicConstraints=critical,CA:FALSE" \
        -CA "$work/ca.pem" -CAkey "$work/ca.key" -keyout "$work/key.pem" -out "$work/cert.pem" 2>"$work/log" \
        || { cat "$work/log"; exit 1; }
    install -m 0644 "$work/ca.pem" /trust/ca.pem
    install -m 0644 "$work/cert.pem" /pebble-tls/cert.pem
    install -m 0644 "$work/key.pem" /pebble-tls/key.pem
    rm -r "$work"
fi
if [ ! -e /secrets/backends ]; then
    openssl rand -hex 32 >/secrets/.new
    chmod 0400 /secrets/.new
    chown -R "$nexus_user:$nexus_user" /secrets
    mv /secrets/.new /secrets/backends
fi
