#!/usr/bin/env bash
# The load run of `make bench`: drives the gateway in its modes, and nginx and Varnish as proxies and as caches beside
# it, in interleaved rounds on this machine, and prints requests/s and CPU microseconds per request. Compare ratios
# within one run, never absolute figures between runs. Every mode is checked to do its job; one that does not ends the
# run. Last, many connections ask for one cold key at once.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: benches/load/run.sh [--without-gateway]

  --without-gateway  only what needs no gateway: the upstream alone, nginx and Varnish before it

Environment:
  LOAD_ROUNDS       rounds, of which medians are taken   (default 3)
  LOAD_SECONDS      seconds per mode and round           (default 3)
  LOAD_CONNECTIONS  connections of the generator         (default 64)
  LOAD_HOT          connections on one hot key           (default 512)
  LOAD_COLD         connections on one cold key, 0: none (default 10000)
  LOAD_PEERS        modes of others, of: nginx nginx-hit varnish varnish-hit (default all; nginx always)
  LOAD_MODES        gateway modes, of: plain hit hit-redis full full-shared scripted cached cached-alone refused-401
                    refused-429 hot hot-alone            (default all)
  TOLLGATE_BIN      the gateway  (default: dist/tollgate in the target directory, as `cargo build --profile dist` makes)
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# Daemons live in /usr/sbin, which is not on every user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
LC_ALL=C
export PATH LC_ALL

rounds=${LOAD_ROUNDS:-3}
duration=${LOAD_SECONDS:-3}
connections=${LOAD_CONNECTIONS:-64}
hot_connections=${LOAD_HOT:-512}
cold_connections=${LOAD_COLD:-10000}
peers=${LOAD_PEERS:-nginx nginx-hit varnish varnish-hit}
case " $peers " in *' nginx '*) ;; *) peers="nginx $peers" ;; esac
gateway_modes=${LOAD_MODES:-plain hit hit-redis full full-shared scripted cached cached-alone refused-401 refused-429 hot hot-alone}
gateway_bin=${TOLLGATE_BIN:-${CARGO_TARGET_DIR:-$root/target}/dist/tollgate}
with_gateway=yes
case "${1:-}" in
    '') ;;
    --without-gateway) with_gateway= ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

# For the cold key: a connection is a file on either side.
ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true

work=$(mktemp -d)
# Where root runs this, nginx's workers are nobody: they must reach the directory of their cache.
chmod 711 "$work"
pids=()
cleanup() {
    local pid
    for pid in "${pids[@]}"; do
        case "$pid" in
            # These must live to take their workers along; the others have nothing to drain or save.
            "${upstream_pid:-}" | "${proxy_pid:-}" | "${varnish_pid:-}") kill -TERM "$pid" 2>/dev/null || true ;;
            *) kill -KILL "$pid" 2>/dev/null || true ;;
        esac
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
    echo "load run: $*" >&2
    exit 1
}

fail_with_log() { # fail_with_log FILE MESSAGE...
    echo "--- the last lines of $(basename "$1"):" >&2
    tail -n 20 "$1" >&2 || true
    shift
    fail "$@"
}

# --- processes and ports -------------------------------------------------------------------------------------------

taken=' '
# Sets `port` to one that nobody listens on, below the range that outgoing connections use.
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

# Prints the response to one GET, head and body.
fetch() { # fetch PORT PATH [TOKEN]
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n' "$2" "$1" >&3
        [ -z "${3:-}" ] || printf 'Authorization: Bearer %s\r\n' "$3" >&3
        printf '\r\n' >&3
        timeout 10 cat <&3
    ) 2>/dev/null
}

status_of() { # status_of PORT PATH [TOKEN]
    fetch "$@" | awk 'NR == 1 { print $2 }'
}

# Waits, for a bounded time, until PATH answers 200; ends the run if the process ends first.
await() { # await NAME PID LOG PORT PATH
    local attempt
    for ((attempt = 0; attempt < 200; attempt++)); do
        kill -0 "$2" 2>/dev/null || fail_with_log "$3" "$1 ended instead of serving"
        if [ "$(status_of "$4" "$5")" = 200 ]; then
            return
        fi
        sleep 0.05
    done
    fail_with_log "$3" "$1 does not answer $5 within 10 s"
}

# CPU time in clock ticks that a process and its children (nginx's workers, Varnish's child) have used, all threads included.
cpu_ticks() { # cpu_ticks PID
    local pid total=0 ticks
    for pid in "$1" $(cat "/proc/$1/task/$1/children"); do
        # The fields follow the command name, which stands in parentheses and may contain blanks.
        ticks=$(sed 's/.*) //' "/proc/$pid/stat" | awk '{ print $12 + $13 }')
        total=$((total + ticks))
    done
    echo "$total"
}

redis_commands() {
    redis-cli -p "$redis_port" INFO stats | awk -F: '/^total_commands_processed/ { print $2 + 0 }'
}

# How often the script was called.
redis_scripts() {
    redis-cli -p "$redis_port" INFO commandstats | tr ',=' '  ' | awk '/^cmdstat_evalsha:/ { n = $2 } END { print n + 0 }'
}

redis_ticks() {
    cpu_ticks "$redis_pid"
}

upstream_requests() {
    # The second number line of stub_status: accepted, handled, requests. Asking is a request too.
    fetch "$upstream_port" /stub_status | awk '/^ *[0-9]+ [0-9]+ [0-9]+/ { print $3 }'
}

fill() { # fill TEMPLATE > FILE
    sed -e "s|@DIR@|$work|g" -e "s|@UPSTREAM@|$upstream_port|g" -e "s|@PROXY@|${proxy_port:-}|g" \
        -e "s|@LISTEN@|${gateway_port:-}|g" -e "s|@ADMIN@|${admin_port:-}|g" -e "s|@REDIS@|${redis_port:-}|g" \
        -e "s|@COALESCE@|${coalesce:-}|g" -e "s|@BODY@|$body|g" ${without_redis:+-e '/^\[redis\]/,/^$/d'} "$1"
}

# --- what is needed -------------------------------------------------------------------------------------------------

needed='nginx wrk redis-server redis-cli'
case "$peers" in *varnish*) needed="$needed varnishd" ;; esac
for program in $needed; do
    command -v "$program" >/dev/null || fail "$program is missing; run scripts/install-deps.sh --bench"
done
if [ -n "$with_gateway" ] && [ ! -x "$gateway_bin" ]; then
    fail "no gateway at $gateway_bin; run cargo build --profile dist, or set TOLLGATE_BIN"
fi

# --- start ----------------------------------------------------------------------------------------------------------

# 1024 bytes of JSON.
body=$(printf '{"id":1,"text":"%01006d"}' 0)

pick_port; upstream_port=$port
pick_port; proxy_port=$port
for name in upstream proxy; do
    fill "$here/nginx-$name.conf" >"$work/$name.conf"
    nginx -p "$work" -c "$work/$name.conf" >"$work/$name.log" 2>&1 &
    pids+=($!)
    declare "${name}_pid=$!"
done
await "nginx (upstream)" "$upstream_pid" "$work/upstream.log" "$upstream_port" /
await "nginx (proxy)" "$proxy_pid" "$work/proxy.log" "$proxy_port" /
length=$(fetch "$upstream_port" / | tr -d '\r' | awk '/^Content-Length:/ { print $2 }')
[ "$length" = 1024 ] || fail "the upstream's body has $length bytes instead of 1024"

case "$peers" in
    *varnish*)
        pick_port; varnish_port=$port
        fill "$here/varnish.vcl" >"$work/varnish.vcl"
        # No jail: it runs as whoever runs this, in a directory of its own. One pool of threads, as Varnish has no one
        # worker to be limited to; its log stays where it always is, in shared memory that nobody reads.
        varnishd -F -j none -n "$work/varnish" -a "127.0.0.1:$varnish_port" -T none -f "$work/varnish.vcl" \
            -s malloc,64m -p thread_pools=1 >"$work/varnish.log" 2>&1 &
        varnish_pid=$!
        pids+=("$varnish_pid")
        await varnish "$varnish_pid" "$work/varnish.log" "$varnish_port" /plain/x
        ;;
esac

pick_port; redis_port=$port
redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" >"$work/redis.log" 2>&1 &
redis_pid=$!
pids+=("$redis_pid")
for ((attempt = 0; ; attempt++)); do
    [ "$(redis-cli -p "$redis_port" PING 2>/dev/null)" = PONG ] && break
    [ "$attempt" -lt 200 ] || fail_with_log "$work/redis.log" "redis-server does not answer within 10 s"
    sleep 0.05
done

modes="direct $peers"
token=
if [ -n "$with_gateway" ]; then
    # Of no worth outside this run.
    JWT_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export JWT_SECRET
    # Three gateways: one whose requests share calls to Redis, one whose requests ask each alone, and one without a
    # Redis. The load is that of one user, so that only the second shows what a request costs that nobody shares with.
    for name in tollgate alone single; do
        pick_port; gateway_port=$port
        pick_port; admin_port=$port
        coalesce=$([ "$name" = alone ] && echo false || echo true)
        without_redis=$([ "$name" != single ] || echo yes)
        fill "$here/tollgate.toml" >"$work/$name.toml"
        "$gateway_bin" run --config "$work/$name.toml" >"$work/$name.log" 2>&1 &
        pids+=($!)
        declare "${name}_pid=$!" "${name}_port=$gateway_port" "${name}_admin=$admin_port"
        await "$name" "$!" "$work/$name.log" "$admin_port" /ready
    done
    token=$("$gateway_bin" token mint --config "$work/tollgate.toml" --subject bench 2>"$work/mint.log") \
        || fail_with_log "$work/mint.log" "tollgate token mint --config FILE --subject bench does not work"
    [ -n "$token" ] || fail "tollgate token mint printed no token"
    modes="$modes $gateway_modes"
fi

# --- modes ----------------------------------------------------------------------------------------------------------

# Sets, for a mode: where it is driven, whose CPU counts and whose log tells, with how many connections, what must come
# of it, and what the table calls it.
#   reaches: upstream requests per request, 1 or 0
#   script:  whether Redis is asked by the script, yes, no or never mind (any)
#   asks:    Redis commands: some for every request (yes), less than half of what each alone needs (shared), none (no), or never mind (any)
describe() { # describe MODE
    target=${tollgate_port:-} path=/ pid=${tollgate_pid:-} log=tollgate with= expected=200 reaches=1 asks=no
    clients=$connections script=any
    case "$1" in
        direct) target=$upstream_port pid=$upstream_pid log=upstream title='the upstream alone (its own CPU)' ;;
        nginx*) target=$proxy_port pid=$proxy_pid log=proxy ;;&
        varnish*) target=${varnish_port:-} pid=${varnish_pid:-} log=varnish ;;&
        nginx) title='**nginx, plain proxy**' ;;
        nginx-hit) path=/cached/x reaches=0 title='nginx, hit in proxy_cache' ;;
        varnish) path=/plain/x title='varnish, plain proxy (pass)' ;;
        varnish-hit) path=/cached/x reaches=0 title='varnish, cache hit' ;;
        plain) path=/plain/x title='tollgate, plain proxy' ;;
        hit*) path=/open/x reaches=0 ;;&
        hit) target=${single_port:-} pid=${single_pid:-} log=single title='tollgate, cache hit, no JWT, limits or Redis' ;;
        hit-redis) asks=any title='tollgate, cache hit, no JWT or limits, generations in Redis' ;;
        full | scripted | cached-alone | hot-alone)
            target=${alone_port:-} pid=${alone_pid:-} log=alone with=$token asks=yes ;;&
        full) path=/full/x script=no title='tollgate, full job: HS256, blacklist, ban, cut-off, 3 fixed windows' ;;
        full-shared) path=/full/x with=$token asks=any title='tollgate, full job, calls to Redis shared' ;;
        scripted) path=/scripted/x script=yes title='tollgate, full job by the script: 3 sliding windows' ;;
        cached*) path=/cached/x with=$token reaches=0 ;;&
        cached) asks=any title='tollgate, cache hit with JWT and limits, calls to Redis shared' ;;
        cached-alone) title='tollgate, cache hit with JWT and limits' ;;
        refused-401) path=/full/x expected=401 reaches=0 title='tollgate, refusal 401' ;;
        refused-429) path=/limited/x with=$token expected=429 reaches=0 title='tollgate, refusal 429 known locally' ;;
        hot) path=/full/x with=$token asks=shared title='tollgate, full job, one hot key, coalesced' ;;&
        hot-alone) path=/full/x title='tollgate, full job, one hot key, each alone' ;;&
        hot | hot-alone) clients=$hot_connections title="$title, $hot_connections connections" ;;
        *) fail "unknown mode: $1" ;;
    esac
}

check_status() { # check_status MODE WHEN
    local status
    status=$(status_of "$target" "$path" "$with")
    [ "$status" = "$expected" ] || fail_with_log "$work/$log.log" \
        "mode $1 does not do its job $2: GET $path answered '${status:-nothing}' instead of $expected"
}

# Brings a mode into the state it is measured in: the cache filled, the limit reached.
prepare() { # prepare MODE
    describe "$1"
    case "$1" in
        *hit* | cached* | refused-429) status_of "$target" "$path" "$with" >/dev/null ;;
    esac
    check_status "$1" "before the load"
}

# Drives a mode once and appends a line to its results.
drive() { # drive MODE
    local ticks redis commands scripts upstream line requests micros errors broken p50 p99
    describe "$1"
    local header=()
    [ -z "$with" ] || header=(-H "Authorization: Bearer $with")
    upstream=$(upstream_requests)
    scripts=$(redis_scripts)
    commands=$(redis_commands)
    ticks=$(cpu_ticks "$pid")
    redis=$(redis_ticks)
    wrk -t1 -c"$clients" -d"${duration}s" -s "$here/report.lua" "${header[@]}" \
        "http://127.0.0.1:$target$path" >"$work/wrk.log" 2>&1 || fail_with_log "$work/wrk.log" "wrk failed in mode $1"
    ticks=$(($(cpu_ticks "$pid") - ticks))
    redis=$(($(redis_ticks) - redis))
    # Our own asking costs a command and a request (or two) that are not the mode's.
    commands=$(($(redis_commands) - commands - 1))
    scripts=$(($(redis_scripts) - scripts))
    upstream=$(($(upstream_requests) - upstream - 1))

    line=$(awk '$1 == "RESULT"' "$work/wrk.log")
    [ -n "$line" ] || fail_with_log "$work/wrk.log" "wrk printed no result in mode $1"
    read -r _ requests micros errors broken p50 p99 _ <<<"$line"

    [ "$requests" -gt 0 ] || fail_with_log "$work/wrk.log" "mode $1 answered nothing"
    [ "$broken" -eq 0 ] || fail_with_log "$work/wrk.log" "mode $1: $broken broken connections or timeouts"
    if [ "$expected" -lt 400 ]; then
        [ "$errors" -eq 0 ] || fail_with_log "$work/$log.log" "mode $1: $errors of $requests answers are errors"
    else
        # wrk may count answers that came after the last moment among one figure and not the other.
        [ "$errors" -ge $((requests - clients)) ] || fail_with_log "$work/$log.log" \
            "mode $1: only $errors of $requests answers are refusals"
    fi
    if [ "$reaches" -eq 1 ]; then
        [ "$upstream" -ge "$requests" ] || fail "mode $1: the upstream saw only $upstream of $requests requests"
    else
        [ "$upstream" -le $((requests / 1000 + 1)) ] || fail "mode $1: $upstream of $requests requests reached the upstream"
    fi
    case "$asks" in
        yes) [ "$commands" -ge "$requests" ] || fail "mode $1: Redis saw only $commands commands for $requests requests" ;;
        shared) [ "$commands" -le $((requests * 2 + 100)) ] \
            || fail "mode $1: Redis saw $commands commands for $requests requests, which share too little" ;;
        no) [ "$commands" -le $((requests / 1000 + 100)) ] || fail "mode $1: Redis saw $commands commands and should see none" ;;
    esac
    case "$script" in
        yes) [ "$scripts" -ge "$requests" ] || fail "mode $1: only $scripts of $requests requests were asked by the script" ;;
        no) [ "$scripts" -le $((requests / 10 + 100)) ] || fail "mode $1: the script was called $scripts times and should not be" ;;
    esac
    check_status "$1" "after the load"

    awk -v r="$requests" -v us="$micros" -v g="$ticks" -v d="$redis" -v hz="$(getconf CLK_TCK)" -v p50="$p50" \
        -v p99="$p99" -v c="$commands" \
        'BEGIN { printf "%.1f %.2f %.2f %.2f %d %d\n", r * 1e6 / us, g * 1e6 / hz / r, d * 1e6 / hz / r, c / r, p50, p99 }' \
        >>"$work/results.$1"
}

for mode in $modes; do
    prepare "$mode"
done
for ((round = 1; round <= rounds; round++)); do
    for mode in $modes; do
        echo "round $round of $rounds: $mode" >&2
        drive "$mode"
    done
done

# --- many at once on one cold key ------------------------------------------------------------------------------------

# How many answers on the route of the cold key had one outcome.
cold_outcomes() { # cold_outcomes OUTCOME
    fetch "$single_admin" /metrics | tr -d '\r' \
        | awk -v line="tollgate_cache_total{outcome=\"$1\",route=\"cold\"}" '$1 == line { n = $2 } END { print n + 0 }'
}

# Sets `cold_line`. Whoever comes while the one fetch is under way waits for it: the upstream takes its time, so that
# most do. What they ask for after their first answer are hits. No Redis: whether it keeps its deadline while 10,000
# connections are opened on a busy machine is another question.
drive_cold() {
    local upstream began own requests broken longest
    began=$(date +%s%N)
    [ "$(status_of "$upstream_port" /cold/x)" = 200 ] || fail "the upstream does not answer /cold/x"
    own=$((($(date +%s%N) - began) / 1000))
    upstream=$(upstream_requests)
    wrk -t1 -c"$cold_connections" -d12s --timeout 20s -s "$here/report.lua" "http://127.0.0.1:$single_port/cold/x" \
        >"$work/wrk.log" 2>&1 || fail_with_log "$work/wrk.log" "wrk failed on the cold key"
    upstream=$(($(upstream_requests) - upstream - 1))
    read -r _ requests _ _ broken _ _ longest <<<"$(awk '$1 == "RESULT"' "$work/wrk.log")"
    [ "${broken:-1}" -eq 0 ] || fail_with_log "$work/wrk.log" "cold key: ${broken:-no result:} broken connections or timeouts"
    cold_line=$(awk -v n="$cold_connections" -v u="$upstream" -v own="$own" -v longest="$longest" \
        -v waited="$(cold_outcomes coalesced)" -v requests="$requests" 'BEGIN {
        printf "%d connections on one cold key: requests at the upstream: %d%s; it takes %.2f s for one; %d waited for it, ",
            n, u, (u > 1) ? " instead of 1, as when a starved gateway waits longer than it may" : "", own / 1e6, waited
        printf "%d answers in 12 s, the longest after %.2f s", requests, longest / 1e6 }')
}

cold_line=
if [ -n "$with_gateway" ] && [ "$cold_connections" -gt 0 ]; then
    if [ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge $((cold_connections + 500)) ]; then
        echo "$cold_connections connections on one cold key" >&2
        drive_cold
    else
        cold_line="No run on one cold key: $cold_connections connections are more than the $(ulimit -n) open files allowed here"
    fi
fi

# --- report ---------------------------------------------------------------------------------------------------------

median() { # median MODE COLUMN
    awk -v column="$2" '{ print $column }' "$work/results.$1" | sort -n \
        | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

echo
echo "Medians of $rounds rounds of $duration s, $connections connections, 1 KiB JSON, keep-alive; $(nproc) cores," \
    "$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nginx -v 2>&1 | sed 's/.*: //')."
echo
echo '| mode | requests/s | proxy CPU µs/request | Redis CPU µs/request | Redis commands/request | p50 ms | p99 ms | CPU (both) ÷ nginx | requests/s ÷ nginx |'
echo '|---|--:|--:|--:|--:|--:|--:|--:|--:|'
nginx_rate=$(median nginx 1)
nginx_cpu=$(median nginx 2)
for mode in $modes; do
    describe "$mode"
    awk -v title="$title" -v rate="$(median "$mode" 1)" -v cpu="$(median "$mode" 2)" -v redis="$(median "$mode" 3)" \
        -v commands="$(median "$mode" 4)" -v p50="$(median "$mode" 5)" -v p99="$(median "$mode" 6)" \
        -v nginx_rate="$nginx_rate" -v nginx_cpu="$nginx_cpu" '
        BEGIN {
            printf "| %s | %d | %.1f | %.1f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", title, rate, cpu, redis, commands,
                p50 / 1000, p99 / 1000, (cpu + redis) / nginx_cpu, rate / nginx_rate
        }'
done

both() { # both MODE MODE COLUMN: whether both were measured; sets the ratio of their medians
    case " $modes " in *" $1 "*) ;; *) return 1 ;; esac
    case " $modes " in *" $2 "*) ;; *) return 1 ;; esac
    ratio=$(awk -v a="$(median "$1" "$3")" -v b="$(median "$2" "$3")" 'BEGIN { printf "%.2f", (b > 0) ? a / b : 0 }')
}

echo
[ -z "$cold_line" ] || echo "$cold_line"
! both hot-alone hot 4 || echo "Redis commands per request on one hot key, each alone ÷ coalesced: $ratio"
! both hot hot-alone 1 || echo "Requests/s on one hot key, coalesced ÷ each alone: $ratio"
! both refused-429 full 2 || echo "Proxy CPU of a refusal 429 ÷ of a forwarded request, full job: $ratio"
! both refused-429 plain 2 || echo "Proxy CPU of a refusal 429 ÷ of a forwarded request, plain: $ratio"
hit_of() { # hit_of HIT FORWARD WHAT
    ! both "$1" "$2" 2 || echo "Proxy CPU of a cache hit ÷ of a forwarded request, $3: $ratio"
}
hit_of nginx-hit nginx nginx
hit_of varnish-hit varnish varnish
hit_of hit plain 'tollgate without JWT, limits and Redis'
hit_of hit-redis plain 'tollgate without JWT and limits, generations in Redis'
hit_of cached full-shared 'tollgate with JWT and limits, calls to Redis shared'
hit_of cached-alone full 'tollgate with JWT and limits, each alone'
hit_of cached plain 'tollgate, hit with JWT and limits, forwarded without'

