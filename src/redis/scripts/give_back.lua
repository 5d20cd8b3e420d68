-- Takes one request off a counter again, if the counter is still the one it was counted in.
--
-- KEYS[1]  the counter
-- ARGV     kind (f fixed window, s sliding window, b token bucket), cost, window in ms, anchor: the end of the fixed
--          window or the start of the sliding one, as it was reported when the request was counted
-- Reply    1 if something was taken off, else 0
-- Values as in gate.lua. No key is created, none loses its TTL, no count falls below zero.

local key, cost, window, anchor = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local text = redis.call('GET', key)
if not text then return 0 end
if ARGV[1] == 'f' then
  local count = tonumber(text)
  if not count or count < cost or redis.call('PEXPIRETIME', key) ~= anchor then return 0 end
  redis.call('DECRBY', key, ARGV[2])
  return 1
end
if ARGV[1] == 's' then
  local s, c, p = string.match(text, '^s(%d+) (%d+) (%d+)$')
  s, c, p = tonumber(s), tonumber(c), tonumber(p)
  if s == anchor and c >= cost then
    c = c - cost
  elseif s and s == anchor + window and p >= cost then
    p = p - cost
  else
    return 0
  end
  redis.call('SET', key, string.format('s%.0f %.0f %.0f', s, c, p), 'KEEPTTL')
  return 1
end
local at, debt = string.match(text, '^b(%d+) (%d+)$')
if not at then return 0 end
redis.call('SET', key, string.format('b%.0f %.0f', tonumber(at), math.max(0, tonumber(debt) - cost * window)), 'KEEPTTL')
return 1
