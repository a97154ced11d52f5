#!/bin/sh
# Installs Nexus Proxy as a systemd service from a wheel, upgrades, reconfigures, rolls back and removes it.
# `install.sh help` tells how. Nothing is changed before everything that can be checked is checked.
set -eu

PREFIX=/opt/nexus-proxy
CONFIG_DIR=/etc/nexus-proxy
STATE_DIR=/var/lib/nexus-proxy
CONFIG=$CONFIG_DIR/server.yaml
UNIT=/etc/systemd/system/nexus-proxy.service
LINK=/usr/local/bin/nexus
USER_NAME=nexus
SERVICE=nexus-proxy

ORIGINAL_CONFIG=/etc/nexus-proxy-server/config.yaml
ORIGINAL_STATE=/var/lib/nexus-proxy-server

usage() {
    cat <<'TEXT'
Usage: install.sh COMMAND [OPTIONS]

  install     --wheel FILE|URL [--hostname NAME | --migrate]  install, or upgrade what is there
  upgrade     --wheel FILE|URL                                keep the configuration, replace the program and the unit
  reconfigure --hostname NAME                                 write a new configuration; the old one is kept beside
  rollback                                                    go back to the version before
  uninstall   [--purge]                                       remove the program; --purge: configuration and certificates, too

Options:
  --wheel FILE|URL     nexus_proxy-VERSION-py3-none-any.whl                            (NEXUS_WHEEL)
  --sums FILE|URL      its SHA256SUMS; by default the file of that name beside it      (NEXUS_SUMS)
  --hostname NAME      public name of the node; its certificate comes by ACME          (NEXUS_HOST)
  --migrate            take over /etc/nexus-proxy-server and its certificates
  --python PROGRAM     a Python of 3.11 or newer; python3 by default                   (NEXUS_PYTHON)
  --no-start           do not enable and start the service

The wheel's checksum is verified before anything is changed: no sums, no entry, no tool, or another sum, and nothing is.
TEXT
}

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# -- Options ---------------------------------------------------------------------------------------------------------

wheel=${NEXUS_WHEEL:-}
sums=${NEXUS_SUMS:-}
hostname=${NEXUS_HOST:-}
python=${NEXUS_PYTHON:-python3}
migrate=no purge=no start=yes

command=${1:-help}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
    case $1 in
    --wheel | --sums | --hostname | --python)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --wheel) wheel=$2 ;;
        --sums) sums=$2 ;;
        --hostname) hostname=$2 ;;
        --python) python=$2 ;;
        esac
        shift
        ;;
    --migrate) migrate=yes ;;
    --purge) purge=yes ;;
    --no-start) start=no ;;
    -h | --help) command=help ;;
    *) fail "unknown option $1; see: install.sh help" ;;
    esac
    shift
done

# -- Checks ----------------------------------------------------------------------------------------------------------

need_root() { [ "$(id -u)" -eq 0 ] || fail "run it as root: it writes to $PREFIX, $CONFIG_DIR and $UNIT"; }

need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is missing; install it: $2"; }

check_python() {
    need "$python" "apt-get install python3 python3-venv, or name another one by --python"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is older than 3.11; name a newer one by --python"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make environments; apt-get install python3-venv"
}

check_hostname() {
    # What a name of the DNS looks like; `nexus config check` looks closer.
    case $hostname in
    *[!A-Za-z0-9._-]* | *..* | .* | -* | '') fail "'$hostname' is no host name; give --hostname hub.example.com" ;;
    esac
}

check_records() { # a warning only: the records may be about to change
    known=$(getent ahosts "$hostname" 2>/dev/null | awk '{print $1}' | sort -u | tr '\n' ' ')
    [ -n "$known" ] || {
        say "warning: $hostname has no address yet: create an A or AAAA record that points to this machine"
        return 0
    }
    own=$(ip -o addr show 2>/dev/null | awk '{sub("/.*", "", $4); print $4}')
    for address in $known; do
        printf '%s\n' "$own" | grep -qxF "$address" && return 0
    done
    say "warning: $hostname is at $known- none of which is an address of this machine: no certificate comes" \
        "before its records, or the router in between, lead here"
}

check_ports() { # busy ports stop the node; after an upgrade they are its own
    [ ! -e "$PREFIX/current" ] || return 0
    command -v ss >/dev/null 2>&1 || return 0
    for port in 80 443 8443; do
        if ss -Hltn "sport = :$port" | grep -q .; then
            fail "port $port is in use: stop the program that has it (ss -ltnp 'sport = :$port' shows it)"
        fi
    done
}

fetch() { # fetch FILE|URL TARGET
    case $1 in
    https://*)
        need curl "apt-get install curl"
        curl --proto '=https' --fail --silent --show-error --location --output "$2" "$1" || fail "$1 cannot be fetched"
        ;;
    http://*) fail "$1 is not encrypted; use https" ;;
    *) cp "$1" "$2" 2>/dev/null || fail "$1 cannot be read" ;;
    esac
}

verified_wheel() { # leaves the wheel in $scratch, under its own name in $file
    [ -n "$wheel" ] || fail "which wheel? give --wheel FILE or URL"
    need sha256sum "apt-get install coreutils"
    file=${wheel##*/}
    case $file in
    nexus_proxy-*.whl) ;;
    *) fail "$file is no wheel of Nexus Proxy (nexus_proxy-VERSION-py3-none-any.whl)" ;;
    esac
    [ -n "$sums" ] || sums=${wheel%"$file"}SHA256SUMS
    fetch "$wheel" "$scratch/$file"
    fetch "$sums" "$scratch/SHA256SUMS"
    # Exactly one entry, for exactly this name; "*" marks binary files.
    awk -v file="$file" '$2 == file || $2 == "*" file' "$scratch/SHA256SUMS" >"$scratch/entry"
    [ "$(wc -l <"$scratch/entry")" -eq 1 ] || fail "SHA256SUMS has no entry, or several, for $file: nothing is installed"
    (cd "$scratch" && sha256sum --check --strict --status entry) ||
        fail "$file has another checksum than SHA256SUMS says: nothing is installed; fetch both anew"
    version=${file#nexus_proxy-}
    version=${version%%-*}
}

# -- Parts -----------------------------------------------------------------------------------------------------------

has_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

make_user() {
    getent passwd "$USER_NAME" >/dev/null ||
        useradd --system --user-group --home-dir "$STATE_DIR" --no-create-home --shell /usr/sbin/nologin "$USER_NAME"
    install -d -m 0750 -o root -g "$USER_NAME" "$CONFIG_DIR"
    install -d -m 0700 -o "$USER_NAME" -g "$USER_NAME" "$STATE_DIR"
}

make_environment() { # a directory for each version; nothing refers to it before it is complete
    target=$PREFIX/$version
    if [ -x "$target/bin/nexus" ] && "$target/bin/nexus" version >/dev/null 2>&1; then
        say "version $version is there already"
        return 0
    fi
    rm -rf "$target"
    install -d -m 0755 "$PREFIX"
    umask 022
    "$python" -m venv "$target"
    "$target/bin/pip" install --quiet --disable-pip-version-check "$scratch/$file" || {
        rm -rf "$target"
        fail "the wheel's dependencies cannot be installed; see above"
    }
    runuser -u "$USER_NAME" -- "$target/bin/nexus" version >/dev/null || {
        rm -rf "$target"
        fail "the user $USER_NAME cannot run the installed program; is $python readable by everybody? name another one by --python"
    }
}

switch_to() { # switch_to VERSION: in one step, remembering the one before
    if [ -L "$PREFIX/current" ]; then
        before=$(readlink "$PREFIX/current")
        [ "$before" = "$1" ] || ln -sfn "$before" "$PREFIX/previous"
    fi
    ln -sfn "$1" "$PREFIX/.current"
    mv -T "$PREFIX/.current" "$PREFIX/current"
    ln -sfn "$PREFIX/current/bin/nexus" "$LINK"
    for directory in "$PREFIX"/*/; do # keep two versions
        directory=$(basename "$directory")
        case $directory in
        current | previous) ;;
        *)
            [ "$directory" = "$(readlink "$PREFIX/current")" ] ||
                [ "$directory" = "$(readlink "$PREFIX/previous" 2>/dev/null)" ] || rm -rf "${PREFIX:?}/$directory"
            ;;
        esac
    done
}

write_unit() {
    "$PREFIX/current/bin/python" - "$UNIT" <<'PYTHON'
import importlib.resources, pathlib, sys
unit = importlib.resources.files("nexus").joinpath("nexus-proxy.service").read_text()
pathlib.Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(sys.argv[1]).write_text(unit)
PYTHON
    chmod 0644 "$UNIT"
}

write_configuration() { # nexus init keeps what it replaces
    "$PREFIX/current/bin/nexus" init "$CONFIG_DIR" --acme --hostname "$hostname" \
        --acme-cache-dir "$STATE_DIR/acme_certs" --force >/dev/null 2>&1 || fail "$CONFIG_DIR cannot be written"
}

take_over() { # the original's file works unchanged; its certificates and account move with it
    [ -r "$ORIGINAL_CONFIG" ] || fail "$ORIGINAL_CONFIG does not exist; there is nothing to migrate"
    install -m 0640 "$ORIGINAL_CONFIG" "$CONFIG"
    if [ -d "$ORIGINAL_STATE/acme_certs" ]; then
        cp -a "$ORIGINAL_STATE/acme_certs" "$STATE_DIR/"
        chown -R "$USER_NAME:$USER_NAME" "$STATE_DIR/acme_certs"
    fi
    sed -i "s#$ORIGINAL_STATE#$STATE_DIR#g" "$CONFIG"
}

own_configuration() { # secrets are for the node alone; the unit lets it change nothing here
    find "$CONFIG_DIR" -type f -exec chown "$USER_NAME:$USER_NAME" {} + -exec chmod 0600 {} +
}

check_configuration() {
    runuser -u "$USER_NAME" -- "$PREFIX/current/bin/nexus" config check "$CONFIG" >/dev/null || fail "$CONFIG cannot be served; see above"
}

start_service() {
    if ! has_systemd; then
        say "systemd does not run here; start the node by: $LINK serve --config $CONFIG"
        return 0
    fi
    systemctl daemon-reload
    [ "$start" = yes ] || return 0
    systemctl enable --quiet "$SERVICE"
    systemctl restart "$SERVICE" || fail "the service does not start: journalctl -u $SERVICE -e tells why"
}

stop_service() {
    has_systemd || return 0
    systemctl disable --now --quiet "$SERVICE" 2>/dev/null || true
}

tell() {
    say "Nexus Proxy $version is installed."
    say "  configuration  $CONFIG (the shared secret of backends is beside it)"
    say "  certificate    nexus cert status -c $CONFIG"
    say "  log            journalctl -u $SERVICE -f"
}

# -- Commands --------------------------------------------------------------------------------------------------------

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $command in
install)
    need_root
    check_python
    if [ ! -e "$CONFIG" ] && [ "$migrate" = no ]; then
        if [ -z "$hostname" ] && [ -t 0 ]; then
            printf 'Public host name of this node: ' >&2
            read -r hostname
        fi
        check_hostname
        check_records
    fi
    check_ports
    verified_wheel
    make_user
    make_environment
    switch_to "$version"
    write_unit
    if [ "$migrate" = yes ]; then
        take_over
    elif [ ! -e "$CONFIG" ]; then
        write_configuration
    fi
    own_configuration
    check_configuration
    start_service
    tell
    ;;
upgrade)
    need_root
    [ -e "$PREFIX/current" ] || fail "nothing is installed here; use: install.sh install"
    check_python
    verified_wheel
    make_environment
    switch_to "$version"
    write_unit
    check_configuration
    start_service
    tell
    ;;
reconfigure)
    need_root
    [ -e "$PREFIX/current" ] || fail "nothing is installed here; use: install.sh install"
    check_hostname
    check_records
    write_configuration
    own_configuration
    check_configuration
    start_service
    say "$CONFIG is new; the old files are beside it, as .bak-*"
    ;;
rollback)
    need_root
    [ -L "$PREFIX/previous" ] || fail "there is no version before this one"
    version=$(readlink "$PREFIX/previous")
    switch_to "$version"
    write_unit
    check_configuration
    start_service
    say "Nexus Proxy $version is back."
    ;;
uninstall)
    need_root
    stop_service
    rm -f "$UNIT" "$LINK"
    rm -rf "$PREFIX"
    has_systemd && systemctl daemon-reload
    if [ "$purge" = yes ]; then
        rm -rf "$CONFIG_DIR" "$STATE_DIR"
        ! getent passwd "$USER_NAME" >/dev/null || userdel "$USER_NAME"
        say "Nexus Proxy is gone, with its configuration and certificates."
    else
        say "Nexus Proxy is gone; $CONFIG_DIR and $STATE_DIR stay (uninstall --purge removes them)."
    fi
    ;;
help) usage ;;
*) fail "unknown command $command; see: install.sh help" ;;
esac
