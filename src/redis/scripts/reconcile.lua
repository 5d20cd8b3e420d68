-- Tells one counter of what an instance admitted on its own while this Redis was away. It adds to the same window, or
-- to an open one that began earlier, or does nothing: no window is made longer or shorter, and nothing is counted
-- beyond the limit.
--
-- KEYS[1]  the counter
-- ARGV[1]  kind         f fixed window, s sliding window, b token bucket, c cool-down, l sliding log
-- ARGV[2]  limit        requests per window, at most 2^53
-- ARGV[3]  window       milliseconds
-- then     f            count, end of the window in ms
--          s            start of the window in ms, its count, the count of the window before
--          b            ms at which the debt was right, debt in requests * window
--          c            end of the window in ms, its count, 0; once tripped next admission, last attempt, 1;
--                       then interval and quiet time in ms
--          l            pairs of ms and how many were admitted then, ascending
--
-- Reply    1 if the window is such a one, and what fits of the limit was added; 0 if it is another one, or over.
--
-- Values are those of gate.lua. Needs Redis 7.0 (PEXPIRETIME).

local key, kind = KEYS[1], ARGV[1]
local limit, window = tonumber(ARGV[2]), tonumber(ARGV[3])
local x, y, z = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if kind == 'f' then
  local count, ends = x, y
  -- The window of a clock far ahead would outlive its own length.
  if ends <= now or ends > now + window then return 0 end
  local known = redis.call('PEXPIRETIME', key)
  if known == -2 then
    if limit < count then count = limit end
    if count < 1 then return 0 end
    redis.call('SET', key, string.format('%.0f', count), 'PXAT', string.format('%.0f', ends - 1))
    return 1
  end
  -- Redis keeps a key through the millisecond of its expiry. A window that began no later and is open holds all that
  -- was admitted in this one.
  if known < 0 or known + 1 > ends then return 0 end
  local value = redis.pcall('GET', key)
  local held = type(value) == 'string' and tonumber(value)
  if not held then return 0 end
  if count > limit - held then count = limit - held end
  if count >= 1 and type(redis.pcall('INCRBY', key, string.format('%.0f', count))) ~= 'number' then return 0 end
  return 1
end

if kind == 'l' then
  local micros = time[1] * 1000000 + time[2]
  local oldest = micros - window * 1000
  local held = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', oldest))
  if type(held) ~= 'number' or limit < 1 then return 0 end
  local same = false
  for i = 4, #ARGV, 2 do
    local at, left = tonumber(ARGV[i]) * 1000, tonumber(ARGV[i + 1])
    if at > micros then at = micros end
    if left > limit then left = limit end
    if at > oldest then
      same = true
      local stamp = string.format('%.0f', at)
      local number = redis.call('ZCOUNT', key, stamp, stamp)
      while left > 0 do
        -- Another instance may have admitted in the same moment.
        left = left - redis.call('ZADD', key, 'NX', stamp, string.format('%s:%08d', stamp, number))
        number = number + 1
      end
    end
  end
  if not same then return 0 end
  -- The newest decide everything.
  local beyond = redis.call('ZCARD', key) - limit
  if beyond > 0 then redis.call('ZREMRANGEBYRANK', key, 0, string.format('%.0f', beyond - 1)) end
  local newest = tonumber(redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
  redis.call('PEXPIREAT', key, string.format('%.0f', math.ceil(newest / 1000) + window))
  return 1
end

local value = redis.pcall('GET', key)
if type(value) == 'table' and value.err then return 0 end

if kind == 'c' then
  local interval, quiet = tonumber(ARGV[7]), tonumber(ARGV[8])
  local tripped, a, u
  if value then
    tripped, a, u = string.match(value, '^([ct])(%d+) (%d+)$')
    if not tripped then return 0 end
    a, u = tonumber(a), tonumber(u)
    if tripped == 't' and now - u >= quiet or tripped == 'c' and a <= now then tripped = nil end
  end
  if z == 1 then
    -- A trip belongs to no window: it holds until it was quiet.
    if y > now then y = now end
    if x > now + interval then x = now + interval end
    if tripped == 't' then
      if a > x then x = a end
      if u > y then y = u end
    end
    if now - y >= quiet then return 0 end
    redis.call('SET', key, string.format('t%.0f %.0f', x, y), 'PXAT', string.format('%.0f', y + quiet))
    return 1
  end
  if x <= now or x > now + window or tripped == 't' or (tripped and a > x) then return 0 end
  if tripped then x, y = a, y + u end
  if y > limit then y = limit end
  if tripped and u > y then y = u end
  if y < 1 then return 0 end
  redis.call('SET', key, string.format('c%.0f %.0f', x, y), 'PXAT', string.format('%.0f', x))
  return 1
end

if kind == 's' then
  -- Both rolled to now; starts are multiples of the window, so that they are the same or none is left.
  local function roll(s, c, p)
    local age = now - s
    if age >= 2 * window or age < -window then return nil end
    if age >= window then return s + window, 0, c end
    return s, c, p
  end
  local s, c, p = roll(x, y, z)
  if not s or c + p < 1 then return 0 end
  local known, count, before
  if value then known, count, before = string.match(value, '^s(%d+) (%d+) (%d+)$') end
  if known then known, count, before = roll(tonumber(known), tonumber(count), tonumber(before)) end
  if known then
    if known == s then
      c, p = c + count, p + before
    elseif known == s + window then
      s, c, p = known, count, before + c
    elseif s == known + window then
      p = p + count
    else
      return 0
    end
  elseif value and not string.find(value, '^s') then
    return 0
  end
  if c > limit then c = limit end
  if p > limit then p = limit end
  if c + p < 1 then return 0 end
  -- A refusal that counts may have counted beyond the limit: that stays.
  if known == s then
    if count > c then c = count end
    if before > p then p = before end
  end
  redis.call('SET', key, string.format('s%.0f %.0f %.0f', s, c, p), 'PX', string.format('%.0f', s + 2 * window - now))
  return 1
end

if kind == 'b' then
  if limit < 1 then return 0 end
  local full = limit * window
  local function drained(at, debt)
    local age = now - at
    if age >= 0 then debt = debt - age * limit elseif age < -window then debt = 0 end
    if debt < 0 then debt = 0 elseif debt > full then debt = full end
    return debt
  end
  local debt = drained(x, y)
  if debt < 1 then return 0 end
  local at, held
  if value then at, held = string.match(value, '^b(%d+) (%d+)$') end
  if at then
    debt = debt + drained(tonumber(at), tonumber(held))
    if debt > full then debt = full end
  elseif value and not string.find(value, '^b') then
    return 0
  end
  local life = math.ceil(debt / limit)
  redis.call('SET', key, string.format('b%.0f %.0f', now, debt), 'PX', string.format('%.0f', life))
  return 1
end

return 0
