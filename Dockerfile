# The node, the backend client and the command line in one image: docker run ... nexus-proxy serve -c /etc/nexus/server.yaml
# Built for linux/amd64 and linux/arm64 from this one file.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY nexus nexus
COPY cli cli
COPY backend_client backend_client
COPY packaging packaging
RUN python3 -m venv /opt/nexus \
    && /opt/nexus/bin/pip install --no-cache-dir --disable-pip-version-check . \
    && /opt/nexus/bin/pip uninstall --yes --quiet pip \
    && find /opt/nexus -name __pycache__ -prune -exec rm -rf {} +

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Nexus Proxy" \
      org.opencontainers.image.description="A privacy-first passthrough proxy: a small public node relays TLS, unread, to backends behind any NAT." \
      org.opencontainers.image.licenses="AGPL-3.0-or-later"
# Its own user and one writable place; everything else may be read-only (docker run --read-only --tmpfs /tmp).
RUN useradd --system --uid 65532 --user-group --home-dir /var/lib/nexus --shell /usr/sbin/nologin nexus \
    && install -d -m 0700 -o nexus -g nexus /var/lib/nexus
COPY --from=build /opt/nexus /opt/nexus
ENV PATH=/opt/nexus/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NEXUS_ADMIN_LISTEN_ADDRESS=127.0.0.1:9464 \
    NEXUS_STATUS_ADMIN=127.0.0.1:9464
USER nexus
WORKDIR /var/lib/nexus
VOLUME /var/lib/nexus
EXPOSE 80 443 8443 8444
# The node handles SIGTERM, SIGINT and SIGHUP itself, and starts no programs that could become orphans.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["nexus", "status", "--alive"]
ENTRYPOINT ["nexus"]
CMD ["--help"]
