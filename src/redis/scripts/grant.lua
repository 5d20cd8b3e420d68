-- Gives back part of what one counter has used, whatever its window: an operator's gift.
--
-- KEYS[1]  the counter
-- ARGV[1]  requests to give back, 1 or more
-- ARGV[2]  the period in milliseconds
--
-- Never creates a key and never changes a TTL: a counter has at most all of its limit left. What the value looks
-- like tells how it counts (see gate.lua). A tripped cool-down opens again.

local key, n, period = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('TYPE', key).ok == 'zset' then return #redis.call('ZPOPMAX', key, n) end
local text = redis.call('GET', key)
if not text then return 0 end

local count = tonumber(text)
if count then
  if n >= count then redis.call('DEL', key) else redis.call('DECRBY', key, n) end
  return 1
end
local start, used, before = string.match(text, '^s(%d+) (%d+) (%d+)$')
if start then
  used, before = tonumber(used), tonumber(before)
  local taken = math.min(used, n)
  before = math.max(0, before - (n - taken))
  redis.call('SET', key, string.format('s%s %.0f %.0f', start, used - taken, before), 'KEEPTTL')
  return 1
end
local at, debt = string.match(text, '^b(%d+) (%d+)$')
if at then
  redis.call('SET', key, string.format('b%s %.0f', at, math.max(0, tonumber(debt) - n * period)), 'KEEPTTL')
  return 1
end
local ends, spent = string.match(text, '^c(%d+) (%d+)$')
if ends and n < tonumber(spent) then
  redis.call('SET', key, string.format('c%s %.0f', ends, tonumber(spent) - n), 'KEEPTTL')
  return 1
end
redis.call('DEL', key)
return 1
