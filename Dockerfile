# The node, the backend client and the command line in one image: docker run ... nexus-proxy serve -c /etc/nexus/server.yaml
# Built for linux/amd64 and linux/arm64 from this one file.
ARG PYTHON=python:3.13-slim

# On the builder's own architecture, for the other one too: uv takes the wheels of the target, bytecode is the same, and
# zig's compiler makes the data path (pyproject.toml, hooks.mypyc) for either.
FROM --platform=${BUILDPLATFORM} ${PYTHON} AS build
ARG TARGETARCH
RUN python3 -m venv /uv && /uv/bin/pip install --no-cache-dir --disable-pip-version-check "uv>=0.9" \
    && python3 -m venv --without-pip /build && python3 -m venv --without-pip /opt/nexus
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN /uv/bin/uv pip install --no-cache --python /build/bin/python3 --requirements pyproject.toml --group compile
COPY nexus nexus
COPY cli cli
COPY backend_client backend_client
COPY packaging packaging
RUN case "${TARGETARCH}" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; *) exit 1 ;; esac \
    && ( export _PYTHON_HOST_PLATFORM="linux-${machine}" \
        SETUPTOOLS_EXT_SUFFIX=".$(python3 -c 'import sys; print(sys.implementation.cache_tag)')-${machine}-linux-gnu.so" \
        CC="/build/bin/python3 -m ziglang cc -target ${machine}-linux-gnu.2.36" CFLAGS="-idirafter /usr/include" \
    && export LDSHARED="$CC -shared -s" HATCH_BUILD_HOOK_ENABLE_MYPYC=1 \
    && /build/bin/python3 -m hatchling build --target wheel --directory /wheel ) \
    && /uv/bin/uv pip install --no-cache --python /opt/nexus/bin/python3 --prefix /opt/nexus \
        --python-platform "${machine}-unknown-linux-gnu" /wheel/*.whl "dumb-init>=1.2.5" \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/nexus/lib

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
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["nexus", "status", "--alive"]
# PID 1 passes signals on to the program alone, and reaps what a backend's token command leaves behind.
ENTRYPOINT ["dumb-init", "--single-child", "--", "nexus"]
CMD ["--help"]
