-- One round trip for a request: is it barred, what is known about it, and do all its counters admit it?
--
-- KEYS     g guards, t tags, n counters, in that order
-- ARGV[1]  g            a guard that exists bars the request (blacklist, ban, ...)
-- ARGV[2]  t            a tag is only reported (session, cache tag, multiplier, ...)
-- ARGV[3]  n            a counter is checked, and consumed if every counter admits
-- ARGV[4]  issued-at    of the token, whole seconds
-- ARGV[5]  cutoff       position of the guard (1..g, 0 for none) that bars only tokens issued before the second
--                       it holds; a value that is not a number bars all
-- then four per counter:
--          algorithm    1 fixed window, 2 sliding window, 3 token bucket
--          limit        requests per window, at most 2^53
--          window       milliseconds
--          packed       cost * 4 + 2 if refused requests consume + 1 if the caller knows when the window ends
--
-- Reply    {0, position}                      barred by that guard; nothing was touched
--          {1, 0, now, tags..., states...}    admitted; every counter consumed
--          {2, mask, now, tags..., states...} refused; bit i of mask is set if counter i (from 0) did not admit
--   now    the clock of this Redis in ms, or 0 if no counter needed it: a fixed window that still admits does not
--   tag    the value, or nil
--   state  as it is after the request, integers:
--          fixed   count, end of the window in ms (0: none, or known to the caller and untouched)
--          sliding start of the current window in ms, its count, the count of the window before
--          bucket  now in ms, debt in requests * window
--
-- Values   fixed   the count, as INCR writes it; the TTL is set by the first hit and never moved
--          sliding "s<start> <count> <count before>"      bucket "b<ms> <debt>"
-- A value of another kind or a key without TTL heals itself; no key is left without one.
-- The arithmetic is that of src/limits/algorithm; everything is exact below 2^53.
-- Needs Redis 7.0 (PEXPIRETIME).

local g, t, n = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if g + t + n == 0 then return {1, 0, 0} end
local call, floor = redis.call, math.floor
local value = call('MGET', unpack(KEYS))

for i = 1, g do
  local bar = value[i]
  if bar and (i ~= tonumber(ARGV[5]) or not string.find(bar, '^%d+$') or tonumber(ARGV[4]) < tonumber(bar)) then
    return {0, i}
  end
end

local reply = {1, 0, 0}
for i = 1, t do reply[3 + i] = value[g + i] end
if n == 0 then return reply end

local now = 0
local function tick()
  if now == 0 then
    local time = call('TIME')
    now = time[1] * 1000 + floor(time[2] / 1000)
  end
  return now
end

-- What the counters hold, rolled to now. `used` and `before` count, `anchor` is a start or an instant.
local used, anchor, before = {}, {}, {}
local mask, bit = 0, 1
for i = 1, n do
  local a = 2 + 4 * i
  local kind, limit, window, cost = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), floor(ARGV[a + 3] / 4)
  local text = value[g + t + i]
  if kind == '1' then
    local count = text and tonumber(text)
    -- A fresh counter stays `false`: its first hit sets the TTL.
    used[i] = count or false
    if (count or 0) + cost > limit then mask = mask + bit end
  elseif kind == '2' then
    local time = tick()
    local s, c, p
    if text then
      s, c, p = string.match(text, '^s(%d+) (%d+) (%d+)$')
    end
    if s then
      s, c, p = tonumber(s), tonumber(c), tonumber(p)
      local age = time - s
      if age >= 2 * window or age < -window then
        s = nil
      elseif age >= window then
        s, c, p = s + window, 0, c
      end
    end
    if not s then s, c, p = time - time % window, 0, 0 end
    used[i], anchor[i], before[i] = c, s, p
    local left = window
    if time > s then left = s + window - time end
    if p * left + (c + cost) * window > limit * window then mask = mask + bit end
  else
    local time = tick()
    local at, debt
    if text then at, debt = string.match(text, '^b(%d+) (%d+)$') end
    if at then
      local age = time - tonumber(at)
      debt = tonumber(debt)
      if age >= 0 then debt = debt - age * limit elseif age < -window then debt = 0 end
      if debt < 0 then debt = 0 elseif debt > limit * window then debt = limit * window end
    else
      debt = 0
    end
    used[i] = debt
    if debt + cost * window > limit * window then mask = mask + bit end
  end
  bit = bit * 2
end

local admitted = mask == 0
if not admitted then reply[1], reply[2] = 2, mask end
local r = 3 + t
for i = 1, n do
  local a = 2 + 4 * i
  local kind, window, packed = ARGV[a], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local cost = floor(packed / 4)
  local consume = admitted or packed % 4 >= 2
  local key, count = KEYS[g + t + i], used[i]
  if kind == '1' then
    local limit, ends = tonumber(ARGV[a + 1]), 0
    local fresh = not count
    if consume and not fresh then
      -- Not an integer after all ("1.5", "0x1"): start again. Any other error would fail the SET too.
      count = redis.pcall('INCRBY', key, cost)
      fresh = type(count) ~= 'number'
    end
    if fresh and consume then
      count, ends = cost, tick() + window
      call('SET', key, cost, 'PXAT', ends)
    elseif fresh then
      count = 0
      if cost > limit then tick() end
    else
      local full = count + cost > limit
      if full or packed % 2 == 0 then
        ends = call('PEXPIRETIME', key)
        if full then tick() end
        if ends < 0 or (full and ends - now > window) then
          ends = tick() + window
          call('PEXPIREAT', key, ends)
        end
      end
    end
    reply[r + 1], reply[r + 2] = count, ends
    r = r + 2
  elseif kind == '2' then
    local s, p = anchor[i], before[i]
    if consume then
      count = count + cost
      call('SET', key, string.format('s%.0f %.0f %.0f', s, count, p), 'PX', s + 2 * window - now)
    end
    reply[r + 1], reply[r + 2], reply[r + 3] = s, count, p
    r = r + 3
  else
    if consume then
      local limit = tonumber(ARGV[a + 1])
      count = count + cost * window
      if count > limit * window then count = limit * window end
      -- With a limit of 0 there is no debt to remember.
      if limit > 0 then
        local life = math.ceil(count / limit)
        if life < 1 then life = 1 end
        call('SET', key, string.format('b%.0f %.0f', now, count), 'PX', life)
      end
    end
    reply[r + 1], reply[r + 2] = now, count
    r = r + 2
  end
end
reply[3] = now
return reply
