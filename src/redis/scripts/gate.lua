-- One call for all requests of a batch: which are barred, what is known about them, and how many of each do all
-- counters admit? src/limits/gate.rs writes the question and reads the answer.
--
-- KEYS     tags, guards, counters kept as strings, counters kept as sorted sets (logs); a counter stands once
-- ARGV[1]  for many items, or anything out of the ordinary: the question, a msgpack array of numbers:
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
--          for one item of counters that neither penalise nor watch, and that are fixed windows, sliding windows or
--          buckets: msgpack values one after the other, of which the last is the question above as a string; it is
--          read only when the item does not fit or a value is not as expected. Before it
--            t, t + g, cutoff, issued-at, amount
--          where amount is count * cost if there are only fixed windows and it is the same for all, else 0; then
--            amount > 0   per counter limit - cost, and the window, or 0 if the caller knows its end. These are
--                         counted first, which is right for nearly every request, and is otherwise taken back
--            amount = 0   per counter kind (0: a fixed window whose end the caller knows), limit (of a fixed
--                         window limit - cost), count * cost, window
--
-- Reply    to one such item that fits: an array of the tags, the guards, and
--            amount > 0   per counter its count and, unless the caller knows it, the end; now
--            amount = 0   per counter anchor, used, before; now
--          to one that is barred: the array ends with the guard that bars it
--          otherwise a string of msgpack values one after the other
--            now, tags..., per item: 0 and the position (from 1) of the guard that bars it, or
--            granted + 1 and per counter fits, anchor, used, before (algorithm::State) after the item
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
-- What follows is long because it is fast: nothing is made before it is needed, neither functions nor tables.

local KEYS, call = KEYS, redis.call
local now, micros = 0, 0
local q = {cmsgpack.unpack(ARGV[1])}
local p = q[1]

if q[2] then
  local tags, read, cutoff, amount = p, q[2], q[3], q[5]
  local value
  if amount == 0 then
    value = call('MGET', unpack(KEYS))
  else
    value = read > 0 and call('MGET', unpack(KEYS, 1, read)) or {}
  end
  for i = tags + 1, read do
    local bar = value[i]
    if bar and (i ~= cutoff or not string.find(bar, '^%d+$') or q[4] < tonumber(bar)) then
      value[i + 1] = nil
      return value
    end
  end

  if amount > 0 then
    local a, r = 6, read
    for i = read + 1, #KEYS do
      local key, window, count = KEYS[i], q[a + 1]
      if amount == 1 then count = redis.pcall('INCR', key) else count = redis.pcall('INCRBY', key, amount) end
      if type(count) ~= 'number' then
        amount = -amount
        break
      end
      r = r + 1
      value[r] = count
      -- One that is used up, or over, needs its end told; so does one that is new although its end was known.
      if count > q[a] or (window == 0 and count == amount) then
        a, amount = a + 2, -amount
        break
      end
      if window > 0 then
        local ends = call('PEXPIRETIME', key) + 1
        if ends < 1 then
          if now == 0 then
            local time = call('TIME')
            now = time[1] * 1000 + math.floor(time[2] / 1000)
          end
          ends = now + window
          call('PEXPIREAT', key, window > 1 and ends - 1 or ends)
          if count == amount then q[a] = -1 end
        end
        r = r + 1
        value[r] = ends
      end
      a = a + 2
    end
    if amount > 0 then
      value[r + 1] = now
      return value
    end
    r = read + 1
    for taken = 6, a - 2, 2 do
      read = read + 1
      local key = KEYS[read]
      -- One made here goes; one that others have taken back to 0 goes on to its end.
      if value[r] == -amount and (q[taken] < 0 or call('PEXPIRETIME', key) < 0) then
        call('DEL', key)
      else
        call('INCRBY', key, amount)
      end
      r = r + (q[taken + 1] > 0 and 2 or 1)
    end
  else
    local match, format = string.match, string.format
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
    -- Made in one piece, and cut to what is needed: growing costs more.
    local reply = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
    local a, r, fits = 6, read, true
    for i = read + 1, #KEYS do
      local kind, limit, taken, window, text = q[a], q[a + 1], q[a + 2], q[a + 3], value[i]
      if kind == 2 then
        local s, c, b
        if text then s, c, b = match(text, '^s(%d+) (%d+) (%d+)$') end
        s, c, b = tonumber(s), tonumber(c), tonumber(b)
        local age = s and now - s or -window - 1
        if age >= 2 * window or age < -window then
          s, c, b = now - now % window, 0, 0
        elseif age >= window then
          s, c, b = s + window, 0, c
        end
        local left = now > s and s + window - now or window
        c = c + taken
        fits = b * left + c * window <= limit * window
        reply[r + 1], reply[r + 2], reply[r + 3] = s, c, b
        value[i], q[a + 3] = format('s%.0f %.0f %.0f', s, c, b), s + 2 * window - now
      elseif kind == 3 then
        local at, debt
        if text then at, debt = match(text, '^b(%d+) (%d+)$') end
        at, debt = tonumber(at) or now, tonumber(debt) or 0
        local age = now - at
        if age >= 0 then debt = debt - age * limit elseif age < -window then debt = 0 end
        debt = (debt > 0 and debt or 0) + taken * window
        fits = debt <= limit * window
        reply[r + 1], reply[r + 2], reply[r + 3] = now, debt, 0
        value[i], q[a + 3] = format('b%.0f %.0f', now, debt), math.ceil(debt / limit)
      else
        local count = text and match(text, '^%d+$') and tonumber(text) or 0
        fits = count + taken <= limit and (count > 0 or (not text and kind == 1))
        reply[r + 1], reply[r + 2], reply[r + 3] = 0, count + taken, 0
      end
      if not fits then break end
      a, r = a + 4, r + 3
    end
    if fits then
      a, r = 6, read
      for i = read + 1, #KEYS do
        local key, kind = KEYS[i], q[a]
        if kind > 1 then
          call('SET', key, value[i], 'PX', q[a + 3])
        else
          local ends = 0
          call('INCRBY', key, q[a + 2])
          if kind == 1 then
            if value[i] then ends = call('PEXPIRETIME', key) + 1 end
            if ends < 1 then
              ends = now + q[a + 3]
              call('PEXPIREAT', key, q[a + 3] > 1 and ends - 1 or ends)
            end
            reply[r + 1] = ends
          end
        end
        a, r = a + 4, r + 3
      end
      for i = 1, read do reply[i] = value[i] end
      reply[r + 1], reply[r + 2] = now, nil
      return reply
    end
  end
  p = cmsgpack.unpack(q[#q])
end

local pcall, pack = redis.pcall, cmsgpack.pack

local function bars(bar, cutoff, issued)
  return not cutoff or not string.find(bar, '^%d+$') or issued < tonumber(bar)
end

local function tick()
  if micros == 0 then
    local time = call('TIME')
    micros = time[1] * 1000000 + time[2]
    now = math.floor(micros / 1000)
  end
  return now
end

-- Redis lets a key live through the millisecond it is told to expire at: the one before the window's end.
local function last(ends)
  return string.format('%.0f', ends - 1 > now and ends - 1 or ends)
end

local tags, strings, counters = p[1], p[1] + p[2] + p[3], p[3] + p[4]
local first = p[1] + p[2]
local value = strings > 0 and call('MGET', unpack(KEYS, 1, strings)) or {}
local floor, ceil, match, format, tonumber = math.floor, math.ceil, string.match, string.format, tonumber

local reply = {0}
for i = 1, tags do reply[i + 1] = value[i] end
local r = tags + 1

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
