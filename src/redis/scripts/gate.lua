-- One call for all requests of a batch: which are barred, what is known about them, and how many of each do all
-- counters admit? src/limits/gate.rs writes the question and reads the answer.
--
-- KEYS     tags, guards, counters kept as strings, counters kept as sorted sets (logs); a counter stands once
-- ARGV[1]  the question, a msgpack array of numbers:
--            t, g, c, l     how many tags, guards, string counters and logs there are
--            per counter    kind, window in ms, interval in ms, quiet time in ms (the last two of a cool-down)
--            per item       count, issued-at, cutoff, number of guards, number of counters,
--                           per guard its position in KEYS, per counter of the item:
--                           its number (from 1), limit, cost, flags
--          kind    1 fixed window, 2 sliding window, 3 token bucket, 4 cool-down, 5 sliding log
--          count   identical requests, judged one after the other; 0 only looks
--          guard   a key that bars the item when it exists (blacklist, ban); cutoff is the position in KEYS of the
--                  one (0 for none) that bars only tokens issued before the second it holds; a value that is not a
--                  number bars all
--          flags   1 refused requests consume too, 2 a shadow: refuses nobody, 4 the caller knows the window's end
-- ARGV[2]  only for one item of fixed windows whose ends are known, none of them a shadow or penalising:
--            t, g, cutoff, issued-at, then per counter amount (text), amount, limit - cost
--          where amount is count * cost: the quick way. It counts first, which is right for nearly every request
--          of a known caller, and is otherwise taken back.
--
-- Reply    a string of msgpack values one after the other
--            quick      -1, tags..., counts...
--            otherwise  now, tags..., per item: 0 and the position (from 1) of the guard that bars it, or
--                       granted + 1 and per counter fits, anchor, used, before (algorithm::State) after the item
--          now     the clock of this Redis in ms, or 0 if no counter needed it: a fixed window that still admits
--                  does not
--          tag     the value, or false
--          granted how many requests every counter but the shadows had room for; fits: how many this one had
--          anchor  0 for a fixed window whose end the caller knows and that is not used up
--
-- Values   fixed     the count, as INCR writes it; the TTL is set by the first hit and never moved
--          sliding   "s<start> <count> <count before>"      bucket  "b<ms> <debt in requests * window>"
--          cool-down "c<end> <count>", once tripped "t<next admission> <last attempt>"
--          log       member "<us>:<number>" with its microsecond as score, one per request of cost 1
-- Every key is read once, judged in Lua, and written at most once after all items were judged. A refusal writes
-- nothing, but for counters that penalise and for cool-downs, which remember every attempt. A value of another
-- kind or a key without TTL heals itself; no key is left without one. The arithmetic is that of
-- src/limits/algorithm; everything is exact below 2^53. Needs Redis 7.0 (PEXPIRETIME).

local KEYS, call, pcall, unpack, pack = KEYS, redis.call, redis.pcall, unpack, cmsgpack.pack

local function bars(bar, cutoff, issued)
  return not cutoff or not string.find(bar, '^%d+$') or issued < tonumber(bar)
end

local quick = ARGV[2]
if quick then
  local q = cmsgpack.unpack(quick)
  local r = q[1]
  local read = r + q[2]
  local reply = {-1}
  if read > 0 then
    local value = call('MGET', unpack(KEYS, 1, read))
    for i = 1, r do reply[i + 1] = value[i] end
    for i = r + 1, read do
      if value[i] and bars(value[i], i == q[3], q[4]) then
        reply[1], reply[r + 2], reply[r + 3] = 0, 0, i - r
        return pack(unpack(reply))
      end
    end
  end
  local a, fits = 2, true
  r = r + 1
  for i = read + 1, #KEYS do
    a = a + 3
    local count = pcall('INCRBY', KEYS[i], q[a])
    if type(count) ~= 'number' then
      fits = false
      break
    end
    r = r + 1
    reply[r] = count
    -- A counter that is new after all needs a TTL; one that is used up, or over, needs its end told.
    if count == q[a + 1] or count > q[a + 2] then
      fits = false
      break
    end
  end
  if fits then return pack(unpack(reply)) end
  a = 5
  for i = 1, r - 1 - q[1] do
    local key = KEYS[read + i]
    if reply[1 + q[1] + i] == q[a + 1] then call('DEL', key) else call('DECRBY', key, q[a]) end
    a = a + 3
  end
end

local p = cmsgpack.unpack(ARGV[1])
local tags, strings, counters = p[1], p[1] + p[2] + p[3], p[3] + p[4]
local first = p[1] + p[2]
local value = strings > 0 and call('MGET', unpack(KEYS, 1, strings)) or {}
local floor, ceil, match, format, tonumber = math.floor, math.ceil, string.match, string.format, tonumber

local reply = {0}
for i = 1, tags do reply[i + 1] = value[i] end
local r = tags + 1

local now, micros = 0, 0
local function tick()
  if now == 0 then
    local time = call('TIME')
    micros = time[1] * 1000000 + time[2]
    now = floor(micros / 1000)
  end
  return now
end

-- Per counter: its state, `used` being nil until it was read; whether it must be written; of a fixed window
-- whether the key exists (`there`) and whether its end must be set (`moved`).
local anchor, used, before, dirty, there, moved = {}, {}, {}, {}, {}, {}
-- Per log: requests in it before this call, the newest, its member, and what was added and dropped since.
local alive, newest, member, added, dropped, foreign

local function read(i)
  local k = 4 * i
  local kind, window, text = p[k + 1], p[k + 2], value[first + i]
  before[i] = 0
  if kind == 1 then
    local count = text and tonumber(text)
    -- Neither 1.5 nor inf nor nan is a count.
    there[i] = count and count % 1 == 0 and count < 2^62 and count > -2^62
    used[i], anchor[i] = there[i] and count or 0, 0
    return
  end
  local time = tick()
  if kind == 2 then
    local s, c, b
    if text then s, c, b = match(text, '^s(%d+) (%d+) (%d+)$') end
    if s then
      s, c, b = tonumber(s), tonumber(c), tonumber(b)
      local age = time - s
      if age >= 2 * window or age < -window then
        s = nil
      elseif age >= window then
        s, c, b = s + window, 0, c
      end
    end
    if not s then s, c, b = time - time % window, 0, 0 end
    anchor[i], used[i], before[i] = s, c, b
  elseif kind == 3 then
    local at, debt
    if text then at, debt = match(text, '^b(%d+) (%d+)$') end
    -- It drains by the limit, which the item knows.
    anchor[i], used[i] = tonumber(at) or time, tonumber(debt) or 0
  elseif kind == 4 then
    local tripped, a, u
    if text then tripped, a, u = match(text, '^([ct])(%d+) (%d+)$') end
    a, u = tonumber(a) or 0, tonumber(u) or 0
    if tripped == 't' then
      if u > time then u = time end
      if a > time + p[k + 3] then a = time + p[k + 3] end
      if time - u >= p[k + 4] then a, u = 0, 0 else before[i] = 1 end
    elseif a <= time then
      a, u = 0, 0
    elseif a > time + window then
      a = time + window
    end
    anchor[i], used[i] = a, u
  else
    if not alive then alive, newest, member, added, dropped, foreign = {}, {}, {}, {}, {}, {} end
    local key = KEYS[first + i]
    local youngest = pcall('ZRANGE', key, -1, -1, 'WITHSCORES')
    local score = tonumber(youngest[2])
    if youngest.err or (score and score - micros > window * 1000) then
      foreign[i], score = true, nil
    end
    newest[i], member[i], added[i], dropped[i] = score, youngest[1], 0, 0
    alive[i] = 0
    if score and score > micros - window * 1000 then
      alive[i] = call('ZCOUNT', key, format('(%.0f', micros - window * 1000), '+inf')
    end
    anchor[i], used[i] = 0, alive[i]
  end
end

-- What a log reports to a request of this cost.
local function report(i, limit, cost, window)
  if used[i] == 0 then
    anchor[i], before[i] = 0, 0
    return
  end
  local youngest = (added[i] > 0 and micros > (newest[i] or 0)) and micros or newest[i]
  local k = used[i] + cost - limit
  if k < 1 or k > used[i] then k = 1 end
  k = k + dropped[i]
  local leaving = youngest
  if k <= alive[i] then
    local at = format('(%.0f', micros - window * 1000)
    local found = call('ZRANGEBYSCORE', KEYS[first + i], at, '+inf', 'WITHSCORES', 'LIMIT', format('%.0f', k - 1), 1)
    leaving = tonumber(found[2])
  end
  anchor[i], before[i] = ceil(leaving / 1000) + window, ceil(youngest / 1000) + window
end

local fits, a = {}, 4 * counters + 5
for _ = 1, p[a] do
  local n, issued, cutoff, guards, width = p[a + 1], p[a + 2], p[a + 3], p[a + 4], p[a + 5]
  a = a + 5
  local barred
  for g = 1, guards do
    local bar = value[p[a + g]]
    if bar and bars(bar, p[a + g] == cutoff, issued) then
      barred = g
      break
    end
  end
  a = a + guards
  if barred then
    reply[r + 1], reply[r + 2] = 0, barred
    r, a = r + 2, a + 4 * width
  else
    -- How many does each counter have room for?
    local granted = n
    for j = 1, width do
      local b = a + 4 * j - 3
      local i, limit, cost = p[b], p[b + 1], p[b + 2]
      local k = 4 * i
      local kind, window = p[k + 1], p[k + 2]
      if not used[i] then read(i) end
      local room
      if kind == 2 then
        local left = window
        if now > anchor[i] then left = anchor[i] + window - now end
        room = floor((limit * window - before[i] * left - used[i] * window) / (cost * window))
      elseif kind == 3 then
        local age, debt, full = now - anchor[i], used[i], limit * window
        if age >= 0 then debt = debt - age * limit elseif age < -window then debt = 0 end
        if debt < 0 then debt = 0 elseif debt > full then debt = full end
        anchor[i], used[i] = now, debt
        room = floor((full - debt) / (cost * window))
      elseif before[i] == 1 and kind == 4 then
        room = (now >= anchor[i] and cost <= limit) and 1 or 0
      else
        room = floor((limit - used[i]) / cost)
      end
      if room > n then room = n elseif room < 0 then room = 0 end
      fits[j] = room
      if room < granted and p[b + 3] % 4 < 2 then granted = room end
    end

    -- Consume.
    reply[r + 1] = granted + 1
    r = r + 1
    for j = 1, width do
      local b = a + 4 * j - 3
      local i, limit, cost, flags = p[b], p[b + 1], p[b + 2], p[b + 3]
      local k = 4 * i
      local kind, window, room = p[k + 1], p[k + 2], fits[j]
      local taken = room < granted and room or granted
      if flags % 2 == 1 then taken = kind == 4 and room or n end
      if kind == 1 then
        if taken > 0 then
          used[i], dirty[i] = used[i] + taken * cost, true
          if not there[i] then anchor[i], there[i], moved[i] = tick() + window, true, true end
        end
        local full = used[i] + cost > limit or room < n
        if full then tick() end
        local ends = anchor[i]
        if ends == 0 and there[i] and (full or flags < 4) then
          ends = call('PEXPIRETIME', KEYS[first + i]) + 1
          if ends < 1 or (full and ends - now > window) then
            ends, moved[i] = tick() + window, true
          end
          anchor[i] = ends
        end
      elseif kind == 2 then
        if taken > 0 then used[i], dirty[i] = used[i] + taken * cost, true end
      elseif kind == 3 then
        -- With a limit of 0 there is no debt to remember.
        if taken > 0 and limit > 0 then
          local debt = used[i] + taken * cost * window
          if debt > limit * window then debt = limit * window end
          used[i], dirty[i] = debt, limit
        end
      elseif kind == 4 then
        if n > 0 and cost <= limit then
          if before[i] == 1 then
            if taken > 0 then anchor[i] = now + p[k + 3] end
            used[i], dirty[i] = now, true
          else
            if taken > 0 then
              if anchor[i] == 0 then anchor[i] = now + window end
              used[i], dirty[i] = used[i] + taken * cost, true
            end
            if taken == room and room < n then
              anchor[i], used[i], before[i], dirty[i] = now + p[k + 3], now, 1, true
            end
          end
        end
      else
        if taken > 0 and limit > 0 then
          local more = taken * cost
          if more > limit then more = limit end
          added[i], dirty[i] = added[i] + more, true
          used[i] = used[i] + more
          if used[i] > limit then
            dropped[i] = dropped[i] + used[i] - limit
            used[i] = limit
          end
        end
        report(i, limit, cost, window)
      end
      reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = room, anchor[i], used[i], before[i]
      if kind == 1 and used[i] < 0 then reply[r + 3] = 0 end
      r = r + 4
    end
    a = a + 4 * width
  end
end

-- Redis lets a key live through the millisecond it is told to expire at: the one before the window's end.
local function last(ends)
  return format('%.0f', ends - 1 > now and ends - 1 or ends)
end

-- Write what changed.
for i = 1, counters do
  local key, k = KEYS[first + i], 4 * i
  if dirty[i] then
    local kind, window = p[k + 1], p[k + 2]
    if kind == 1 then
      local count = format('%.0f', used[i])
      if moved[i] then
        call('SET', key, count, 'PXAT', last(anchor[i]))
      else
        call('SET', key, count, 'KEEPTTL')
      end
    elseif kind == 2 then
      local text = format('s%.0f %.0f %.0f', anchor[i], used[i], before[i])
      call('SET', key, text, 'PX', format('%.0f', anchor[i] + 2 * window - now))
    elseif kind == 3 then
      local life = ceil(used[i] / dirty[i])
      if life < 1 then life = 1 end
      call('SET', key, format('b%.0f %.0f', now, used[i]), 'PX', format('%.0f', life))
    elseif kind == 4 then
      local text, ends = 'c%.0f %.0f', anchor[i]
      if before[i] == 1 then text, ends = 't%.0f %.0f', now + p[k + 4] end
      call('SET', key, format(text, anchor[i], used[i]), 'PXAT', format('%.0f', ends))
    else
      local score, number = micros, -1
      if newest[i] and newest[i] >= micros and not foreign[i] then
        score, number = newest[i], tonumber(match(member[i], ':(%d+)$')) or -1
      end
      if foreign[i] or alive[i] == 0 then
        call('DEL', key)
      else
        call('ZREMRANGEBYSCORE', key, '-inf', format('%.0f', micros - window * 1000))
      end
      local stamp, left, words = format('%.0f', score), added[i], nil
      while left > 0 do
        words = {}
        for w = 1, left < 500 and left or 500 do
          number = number + 1
          words[2 * w - 1], words[2 * w] = stamp, format('%s:%08d', stamp, number)
        end
        call('ZADD', key, unpack(words))
        left = left - 500
      end
      if dropped[i] > 0 then call('ZREMRANGEBYRANK', key, 0, format('%.0f', dropped[i] - 1)) end
      call('PEXPIREAT', key, format('%.0f', ceil(score / 1000) + window))
    end
  elseif moved[i] then
    call('PEXPIREAT', key, last(anchor[i]))
  end
end

reply[1] = now
if r <= 1000 then return pack(unpack(reply)) end
local parts = {}
for i = 1, r, 1000 do
  parts[#parts + 1] = pack(unpack(reply, i, i + 999 < r and i + 999 or r))
end
return table.concat(parts)
