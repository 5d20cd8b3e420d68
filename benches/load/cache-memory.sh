#!/usr/bin/env bash
# How much memory the cache really takes: floods the gateway with distinct responses, 200 bytes to 1 MiB, some with
# many fields, some chunked, some in variants, and prints how far its resident memory grows beyond what it takes for
# the same traffic without caching. Fails when that is more than `cache.memory` and a tenth.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: benches/load/cache-memory.sh

Environment:
  CACHE_MEMORY      cache.memory in MiB                      (default 256)
  CACHE_VOLUME      megabytes of distinct responses          (default 5000)
  CACHE_CONNECTIONS connections of the generator             (default 32)
  TOLLGATE_BIN      the gateway  (default: dist/tollgate in the target directory, as `cargo build --profile dist` makes)
USAGE
}

case "${1:-}" in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
LC_ALL=C
export PATH LC_ALL

memory=${CACHE_MEMORY:-256}
volume=${CACHE_VOLUME:-5000}
connections=${CACHE_CONNECTIONS:-32}
gateway_bin=${TOLLGATE_BIN:-${CARGO_TARGET_DIR:-$root/target}/dist/tollgate}

work=$(mktemp -d)
# nginx started by root reads files as nobody.
chmod 711 "$work"
pids=()
cleanup() {
    local pid
    for pid in "${pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "cache memory: $*" >&2
    tail -n 20 "$work"/*.log >&2 2>/dev/null || true
    exit 1
}

for program in nginx wrk; do
    command -v "$program" >/dev/null || fail "$program is missing; run scripts/install-deps.sh --bench"
done
[ -x "$gateway_bin" ] || fail "no gateway at $gateway_bin; run cargo build --profile dist, or set TOLLGATE_BIN"

taken=' '
pick_port() {
    while :; do
        port=$((15000 + RANDOM % 17000))
        case "$taken" in *" $port "*) continue ;; esac
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            taken="$taken$port "
            return
        fi
    done
}

answers() { # answers PORT PATH
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'GET %s HTTP/1.1\r\nHost: load.test\r\nConnection: close\r\n\r\n' "$2" >&3
        timeout 10 head -n 1 <&3 | grep -q ' 200'
    ) 2>/dev/null
}

await() { # await NAME PID PORT PATH
    local attempt
    for ((attempt = 0; attempt < 200; attempt++)); do
        kill -0 "$2" 2>/dev/null || fail "$1 ended instead of serving"
        if answers "$3" "$4"; then
            return
        fi
        sleep 0.05
    done
    fail "$1 does not answer $4 within 10 s"
}

# --- the upstream: files of 60 sizes, each a tenth or so larger than the one before ----------------------------------

pick_port; upstream_port=$port
pick_port; gateway_port=$port
pick_port; admin_port=$port
mkdir "$work/files"
sizes=$(awk 'BEGIN { for (i = 0; i < 60; i++) { s = int(200 * (1048576 / 200) ^ (i / 59)); print (s > 1048576) ? 1048576 : s } }')
for size in $sizes; do
    head -c "$size" /dev/zero >"$work/files/$size"
done
many=$(for field in $(seq 40); do echo "add_header X-Field-$field 'the value of field $field, neither short nor long';"; done)
cat >"$work/upstream.conf" <<CONF
worker_processes 1;
daemon off;
pid $work/upstream.pid;
error_log $work/upstream.err warn;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $work/upstream-body;
    proxy_temp_path $work/upstream-proxy;
    fastcgi_temp_path $work/upstream-fastcgi;
    uwsgi_temp_path $work/upstream-uwsgi;
    scgi_temp_path $work/upstream-scgi;
    keepalive_requests 1000000000;
    open_file_cache max=1000;
    default_type text/plain;
    server {
        listen 127.0.0.1:$upstream_port backlog=4096;
        location = /live { return 200; }
        location ~ ^/[a-z-]+/plain/([0-9]+)/ { alias $work/files/\$1; add_header Cache-Control max-age=3600; }
        location ~ ^/[a-z-]+/fields/([0-9]+)/ { alias $work/files/\$1; add_header Cache-Control max-age=3600; $many }
        location ~ ^/[a-z-]+/variants/([0-9]+)/ { alias $work/files/\$1; add_header Cache-Control max-age=3600; add_header Vary X-Variant; }
        location ~ ^/[a-z-]+/chunked/([0-9]+)/ { alias $work/files/\$1; add_header Cache-Control max-age=3600; ssi on; ssi_types *; }
    }
}
CONF
nginx -p "$work" -c "$work/upstream.conf" >"$work/upstream.log" 2>&1 &
upstream_pid=$!
pids+=("$upstream_pid")
await "nginx (upstream)" "$upstream_pid" "$upstream_port" /live

# --- the gateway -----------------------------------------------------------------------------------------------------

# Of no worth outside this run.
admin_token=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
cat >"$work/tollgate.toml" <<CONF
[server]
listen = "127.0.0.1:$gateway_port"
[admin]
listen = "127.0.0.1:$admin_port"
token = "$admin_token"
[log]
access = false
[redis]
url = ""
[cache]
memory = "${memory}MiB"
redis = false
[upstreams.app]
members = "127.0.0.1:$upstream_port"
[defaults]
upstream = "app"
[[routes]]
name = "stored"
path = "/stored/**"
[routes.cache]
shared = true
[[routes]]
name = "passed-on"
path = "/passed-on/**"
CONF
# As the image does.
MIMALLOC_PURGE_DELAY=10 "$gateway_bin" run --config "$work/tollgate.toml" >"$work/gateway.log" 2>&1 &
gateway_pid=$!
pids+=("$gateway_pid")
await tollgate "$gateway_pid" "$admin_port" /ready

# --- the flood -------------------------------------------------------------------------------------------------------

cat >"$work/flood.lua" <<LUA
local sizes = { $(echo "$sizes" | paste -sd,) }
local kinds = { "plain", "plain", "fields", "variants", "chunked" }
local threads = 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function init(args) what, salt, count = args[1], args[2], 0 end
function request()
    count = count + 1
    local kind = kinds[count % #kinds + 1]
    -- A variant shares its name with three others.
    local name = kind == "variants" and math.floor(count / 20) or count
    wrk.headers["X-Variant"] = tostring(count)
    return wrk.format("GET", string.format("/%s/%s/%d/%s-%d-%d", what, kind, sizes[(count * 7) % #sizes + 1], salt, id, name))
end
function done(summary)
    local errors = summary.errors
    io.write(string.format("RESULT %d %d %d\n", summary.requests, summary.bytes,
        errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
LUA

# Without the pages of the program itself.
resident() {
    awk '/^RssAnon:/ { print $2 }' "/proc/$gateway_pid/status"
}

# Sets requests, megabytes and the most resident KiB, sampled 20 times a second.
flood() { # flood WHAT MEGABYTES
    local round=0 bytes=0 errors=0 now wrk_pid result
    requests=0 most=0
    while [ $((bytes / 1000000)) -lt "$2" ]; do
        round=$((round + 1))
        wrk -t 2 -c "$connections" -d 5s -s "$work/flood.lua" "http://127.0.0.1:$gateway_port" -- "$1" "$round" >"$work/wrk.log" 2>&1 &
        wrk_pid=$!
        while kill -0 "$wrk_pid" 2>/dev/null; do
            now=$(resident)
            [ "$now" -le "$most" ] || most=$now
            sleep 0.05
        done
        wait "$wrk_pid" || fail "wrk failed"
        result=$(grep '^RESULT' "$work/wrk.log") || fail "wrk printed no result"
        read -r _ now result errors <<<"$result"
        [ "$errors" -eq 0 ] || fail "$errors of $now requests failed"
        [ "$now" -gt 0 ] || fail "nothing was answered"
        requests=$((requests + now)) bytes=$((bytes + result))
    done
    megabytes=$((bytes / 1000000))
}

gauge() { # gauge NAME
    (
        exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || exit 1
        printf 'GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n' "$admin_port" "$admin_token" >&3
        timeout 10 cat <&3
    ) 2>/dev/null | awk -v name="$1" '$1 == name { print $2 + 0 }'
}

idle=$(resident)
flood passed-on 500
without=$most
flood stored "$volume"
grown=$((most - without))
printf '%s MB of distinct responses in %s requests over %s connections, cache.memory = %s MiB\n' \
    "$megabytes" "$requests" "$connections" "$memory"
printf '  resident: %d KiB idle, %d KiB at most without caching, %d KiB at most with it\n' "$idle" "$without" "$most"
printf '  the cache counts %s bytes in %s entries\n' "$(gauge tollgate_cache_bytes)" "$(gauge tollgate_cache_entries)"
printf '  grown by %d KiB: %d %% of cache.memory\n' "$grown" $((grown * 100 / (memory * 1024)))
[ "$grown" -le $((memory * 1024 * 11 / 10)) ] || fail "that is more than cache.memory and a tenth"
