#!/bin/sh
# Serve over HTTP; get a certificate for $NAMES with dehydrated, unless another server of the same names does and shares
# it in /shared; then serve over TLS.
set -eu

mkdir -p /shared/challenges /etc/lab /srv/files
head -c 8388608 /dev/urandom >/srv/files/random
head -c 65536 /dev/urandom >/srv/files/small
chown -R www-data /srv/files
chmod 0755 /shared /shared/challenges
rm -f /etc/lab/tls.conf # that of a run before, whose certificate may be gone
nginx -c /lab/web/nginx.conf

if [ -n "${NAMES:-}" ] && [ ! -e /shared/certs/web/fullchain.pem ]; then
    cat >/etc/lab/dehydrated.conf <<CONF
CA=https://pebble:14000/dir
BASEDIR=/shared
WELLKNOWN=/shared/challenges
CERTDIR=/shared/certs
KEY_ALGO=prime256v1
CONF
    export CURL_CA_BUNDLE=/trust/ca.pem
    dehydrated --config /etc/lab/dehydrated.conf --register --accept-terms
    domains=$(for name in $NAMES; do printf -- '--domain %s ' "$name"; done)
    # Until the proxy leads the CA here, that is until the backend client has its session.
    for _ in $(seq 60); do
        # shellcheck disable=SC2086 # one word each
        dehydrated --config /etc/lab/dehydrated.conf --cron $domains --alias web && break
        sleep 1
    done
fi
for _ in $(seq 120); do
    [ ! -e /shared/certs/web/fullchain.pem ] || break
    sleep 0.5
done
cp /lab/web/tls.conf.in /etc/lab/tls.conf
nginx -c /lab/web/nginx.conf -s reload
echo "serving over TLS"
exec sleep infinity
