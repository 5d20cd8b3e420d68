-- Prints, after wrk's own report, the one line that run.sh reads. There is no `response` callback on purpose: calling
-- into Lua for every response would slow the generator down; `errors.status` counts statuses above 399 without it.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        "RESULT %d %d %d %d %d %d %d\n",
        summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99), latency.max
    ))
end
