-- Reads a value, or claims the right to make it.
--
-- KEYS[1]  the key of the value
-- KEYS[2]  the key of the claim, of the same shard
-- ARGV[1]  who claims
-- ARGV[2]  how long the claim holds, in milliseconds
--
-- Returns the value, or where there is none: 1, the caller has the claim; 0, somebody else has; 2, no claim is to be had
-- and nobody need wait: the value will not come, or the claim cannot be written.

local value = redis.call('GET', KEYS[1])
if value then return value end
local set = redis.pcall('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
if type(set) == 'table' then
  if set.err then return 2 end
  return 1
end
local holder = redis.call('GET', KEYS[2])
if holder == ARGV[1] then return 1 end
if holder == '-' then return 2 end
return 0
