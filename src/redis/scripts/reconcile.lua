-- Tells one counter of what an instance admitted on its own while this Redis was away. It adds to the same window or
-- does nothing: no window is made longer or shorter, and nothing is counted beyond the limit.
--
-- KEYS[1]  the counter
-- ARGV[1]  kind         f fixed window, s sliding window, b token bucket
-- ARGV[2]  limit        requests per window, at most 2^53
-- ARGV[3]  window       milliseconds
-- then     f            count, end of the window in ms
--          s            start of the window in ms, its count, the count of the window before
--          b            ms at which the debt was right, debt in requests * window
--
-- Reply    1 if the window is the same, and what fits of the limit was added; 0 if it is another one, or over.
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
    redis.call('SET', key, string.format('%.0f', count), 'PXAT', ends)
    return 1
  end
  if known ~= ends then return 0 end
  local value = redis.pcall('GET', key)
  local held = type(value) == 'string' and tonumber(value)
  if not held then return 0 end
  if count > limit - held then count = limit - held end
  if count >= 1 and type(redis.pcall('INCRBY', key, string.format('%.0f', count))) ~= 'number' then return 0 end
  return 1
end

local value = redis.pcall('GET', key)
if type(value) == 'table' and value.err then return 0 end

if kind == 's' then
  -- Both rolled to now; starts are multiples of the window, so that they are the same or none is left.
  local function roll(s, c, p)
    local age = now - s
    if age >= 2 * window or age < -window then return nil end
    if age >= window then return s + window, 0, c end
    return s, c, p
  end
  local s, c, p = roll(x, y, z)
  if not s then return 0 end
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
  if c + p < 1 or s + 2 * window <= now then return 0 end
  -- A refusal that counts may have counted beyond the limit: that stays.
  if known == s then
    if count > c then c = count end
    if before > p then p = before end
  end
  redis.call('SET', key, string.format('s%.0f %.0f %.0f', s, c, p), 'PX', s + 2 * window - now)
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
  local at, held
  if value then at, held = string.match(value, '^b(%d+) (%d+)$') end
  if at then
    debt = debt + drained(tonumber(at), tonumber(held))
    if debt > full then debt = full end
  elseif value and not string.find(value, '^b') then
    return 0
  end
  if debt < 1 then return 0 end
  local life = math.ceil(debt / limit)
  redis.call('SET', key, string.format('b%.0f %.0f', now, debt), 'PX', life)
  return 1
end

return 0
