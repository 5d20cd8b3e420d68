-- Takes requests off counters again, each only if it still is what the requests were counted in.
--
-- KEYS     the counters, one per refund
-- ARGV[1]  a msgpack array of numbers, per refund:
--            kind, window in ms, amount, anchor, before
--          kind as in gate.lua; amount is requests * cost; anchor and before as the gate reported them then
-- Reply    how many of the refunds were made
--
-- A counter that is absent, of another kind, of another window or that holds less than the amount is left alone
-- (a log: gives what it holds of that millisecond). No key is created, no TTL is set: where a value is written,
-- the TTL is kept, and a key without one is not touched. Values are those of gate.lua. Needs Redis 7.0.

local call, pcall = redis.call, redis.pcall
local match, format, tonumber = string.match, string.format, tonumber
local p, made = cmsgpack.unpack(ARGV[1]), 0

local function write(key, ...)
  if call('PTTL', key) > 0 then
    call('SET', key, format(...), 'KEEPTTL')
    made = made + 1
  end
end

for i = 1, #KEYS do
  local key, a = KEYS[i], 5 * i
  local kind, window, amount, anchor, before = p[a - 4], p[a - 3], p[a - 2], p[a - 1], p[a]
  if kind == 5 then
    -- The oldest of that millisecond: those that stay are none too old.
    local last = (before - window) * 1000
    local gone = pcall('ZRANGEBYSCORE', key, format('(%.0f', last - 1000), format('%.0f', last),
      'LIMIT', 0, format('%.0f', amount))
    if not gone.err and #gone > 0 then
      for from = 1, #gone, 1000 do
        call('ZREM', key, unpack(gone, from, math.min(from + 999, #gone)))
      end
      made = made + 1
    end
  else
    -- MGET, since a key of another type is then simply nil.
    local text = call('MGET', key)[1]
    if not text then
      -- Gone.
    elseif kind == 1 then
      local count = tonumber(text)
      -- A key that was moved to another node ends a little later there; another window ends a window later.
      local drift = math.abs(call('PEXPIRETIME', key) + 1 - anchor)
      if count and count % 1 == 0 and count >= amount and drift <= math.min(window / 2, 500) then
        write(key, '%.0f', count - amount)
      end
    elseif kind == 2 then
      local s, c, b = match(text, '^s(%d+) (%d+) (%d+)$')
      s, c, b = tonumber(s), tonumber(c), tonumber(b)
      if s == anchor and c >= amount then
        write(key, 's%.0f %.0f %.0f', s, c - amount, b)
      elseif s == anchor + window and b >= amount then
        write(key, 's%.0f %.0f %.0f', s, c, b - amount)
      end
    elseif kind == 3 then
      local at, debt = match(text, '^b(%d+) (%d+)$')
      at, debt = tonumber(at), tonumber(debt)
      if at and at >= anchor then
        debt = debt - amount * window
        write(key, 'b%.0f %.0f', at, debt > 0 and debt or 0)
      end
    else
      local ends, count = match(text, '^c(%d+) (%d+)$')
      ends, count = tonumber(ends), tonumber(count)
      if before == 0 and ends == anchor and count >= amount then
        write(key, 'c%.0f %.0f', ends, count - amount)
      end
    end
  end
end
return made
