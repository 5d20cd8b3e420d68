-- One round trip for a request: is it barred, what is known about it, and do all its counters admit it?
--
-- KEYS     g guards, t tags, n counters, in that order
-- ARGV[1]  g            a guard that exists bars the request (blacklist, ban, ...)
-- ARGV[2]  t            a tag is only reported (session, cache tag, multiplier, ...)
-- ARGV[3]  n            a counter is checked, and consumed if every counter admits; at most 32
-- ARGV[4]  issued-at    of the token, whole seconds
-- ARGV[5]  cutoff       position of the guard (1..g, 0 for none) that bars only tokens issued before the second
--                       it holds; a value that is not a number bars all
-- ARGV[6]  quick        1 if every counter is of kind k, else 0
-- then four per counter:
--          kind         f fixed window, k the same whose end the caller knows, s sliding window, b token bucket;
--                       F, S, B the same where refused requests consume too
--          limit        requests per window, at most 2^53
--          window       milliseconds
--          cost         of this request, 1 or more
--
-- Reply    {0, position}                      barred by that guard; nothing was touched
--          {1, 0, now, tags..., states...}    admitted; every counter consumed
--          {2, mask, now, tags..., states...} refused; bit i of mask is set if counter i (from 0) did not admit
--   now    the clock of this Redis in ms, or 0 if no counter needed it: a fixed window that still admits does not
--   tag    the value, or nil
--   state  as it is after the request, integers:
--          fixed   count, end of the window in ms (0: none, or known to the caller and not asked for)
--          sliding start of the current window in ms, its count, the count of the window before
--          bucket  now in ms, debt in requests * window
--
-- Values   fixed   the count, as INCR writes it; the TTL is set by the first hit and never moved
--          sliding "s<start> <count> <count before>"      bucket "b<ms> <debt>"
-- A value of another kind or a key without TTL heals itself; no key is left without one. All keys are read by
-- one MGET and checked before anything is written, so a refusal has nothing to take back. The quick way counts
-- first instead: it is right for nearly every request of a known caller, and otherwise taken back.
-- The arithmetic is that of src/limits/algorithm; everything is exact below 2^53.
-- Needs Redis 7.0 (PEXPIRETIME).

local KEYS, ARGV, tonumber = KEYS, ARGV, tonumber
local call, pcall = redis.call, redis.pcall
local g, t, n = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if #KEYS == 0 then return {1, 0, 0} end
local first, quick = g + t, ARGV[6] == '1'
local value = {}
if not quick then
  value = call('MGET', unpack(KEYS))
elseif first > 0 then
  value = call('MGET', unpack(KEYS, 1, first))
end

for i = 1, g do
  local bar = value[i]
  if bar and (i ~= tonumber(ARGV[5]) or not string.find(bar, '^%d+$') or tonumber(ARGV[4]) < tonumber(bar)) then
    return {0, i}
  end
end

local reply = {1, 0, 0}
for i = 1, t do reply[3 + i] = value[g + i] end

if quick then
  local a, r, taken, fits = 7, 3 + t, 0, true
  for i = 1, n do
    local cost = ARGV[a + 3]
    local count = pcall('INCRBY', KEYS[first + i], cost)
    if type(count) ~= 'number' then
      fits = false
      break
    end
    taken, reply[r + 1], reply[r + 2] = i, count, 0
    -- A counter that is new after all needs a TTL; one that is used up, or over, needs its end told.
    if count - cost == 0 or count + cost > tonumber(ARGV[a + 1]) then
      fits = false
      break
    end
    a, r = a + 4, r + 2
  end
  if fits then return reply end
  for i = 1, taken do
    local key, cost = KEYS[first + i], ARGV[6 + 4 * i]
    if reply[2 + t + 2 * i] - cost == 0 then call('DEL', key) else call('DECRBY', key, cost) end
  end
  local counters = call('MGET', unpack(KEYS, first + 1))
  for i = 1, n do value[first + i] = counters[i] end
end

local now = 0
local function tick()
  if now == 0 then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end

-- First pass: who admits? Weighted counters are rolled to now.
local anchor, before
local mask, bit = 0, 1
for i = 1, n do
  local a = 3 + 4 * i
  local kind, limit, cost = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 3])
  local text = value[first + i]
  if kind == 'k' or kind == 'f' or kind == 'F' then
    local count = text and tonumber(text)
    value[first + i] = count or false
    if (count or 0) + cost > limit then mask = mask + bit end
  else
    if not anchor then anchor, before = {}, {} end
    local time, window = tick(), tonumber(ARGV[a + 2])
    local full = limit * window
    if kind == 's' or kind == 'S' then
      local s, c, p
      if text then s, c, p = string.match(text, '^s(%d+) (%d+) (%d+)$') end
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
      value[first + i], anchor[i], before[i] = c, s, p
      local left = window
      if time > s then left = s + window - time end
      if p * left + (c + cost) * window > full then mask = mask + bit end
    else
      local at, debt
      if text then at, debt = string.match(text, '^b(%d+) (%d+)$') end
      if at then
        local age = time - at
        debt = tonumber(debt)
        if age >= 0 then debt = debt - age * limit elseif age < -window then debt = 0 end
        if debt < 0 then debt = 0 elseif debt > full then debt = full end
      else
        debt = 0
      end
      value[first + i] = debt
      if debt + cost * window > full then mask = mask + bit end
    end
  end
  bit = bit * 2
end

-- Second pass: consume, if all admit or the counter penalises.
local admitted = mask == 0
if not admitted then reply[1], reply[2] = 2, mask end
local r = 3 + t
for i = 1, n do
  local a = 3 + 4 * i
  local kind, key, count = ARGV[a], KEYS[first + i], value[first + i]
  if kind == 'k' or kind == 'f' or kind == 'F' then
    local ends, consumed = 0, false
    if admitted or kind == 'F' then
      if count then
        -- Not an integer after all ("1.5", "0x1"): start again. Any other error would fail the SET too.
        count = pcall('INCRBY', key, ARGV[a + 3])
        if type(count) ~= 'number' then count = false end
      end
      if not count then
        count, ends, consumed = tonumber(ARGV[a + 3]), tick() + ARGV[a + 2], true
        call('SET', key, ARGV[a + 3], 'PXAT', ends)
      end
    end
    if not count then
      count = 0
      tick()
    elseif not consumed then
      local full = count + ARGV[a + 3] > tonumber(ARGV[a + 1])
      if full or kind ~= 'k' then
        ends = call('PEXPIRETIME', key)
        if full then tick() end
        if ends < 0 or (full and ends - now > tonumber(ARGV[a + 2])) then
          ends = tick() + ARGV[a + 2]
          call('PEXPIREAT', key, ends)
        end
      end
    end
    reply[r + 1], reply[r + 2] = count, ends
    r = r + 2
  else
    local limit, window, cost = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
    if kind == 's' or kind == 'S' then
      local s, p = anchor[i], before[i]
      if admitted or kind == 'S' then
        count = count + cost
        call('SET', key, string.format('s%.0f %.0f %.0f', s, count, p), 'PX', s + 2 * window - now)
      end
      reply[r + 1], reply[r + 2], reply[r + 3] = s, count, p
      r = r + 3
    else
      -- With a limit of 0 there is no debt to remember.
      if limit > 0 and (admitted or kind == 'B') then
        count = count + cost * window
        if count > limit * window then count = limit * window end
        local life = math.ceil(count / limit)
        if life < 1 then life = 1 end
        call('SET', key, string.format('b%.0f %.0f', now, count), 'PX', life)
      end
      reply[r + 1], reply[r + 2] = now, count
      r = r + 2
    end
  end
end
reply[3] = now
return reply
