-- Replaces a value, if it is still the one that the caller changed.
--
-- KEYS[1]  the key of a string
-- ARGV[1]  the value the caller has seen; empty: none
-- ARGV[2]  the new value; empty: none, the key goes
-- ARGV[3]  when the new value ends, in milliseconds since the epoch
-- ARGV[4]  the longest value that means anything, in bytes; a longer one counts as none
--
-- Returns 1, or the value that is there instead, empty for none.

local current = redis.call('GET', KEYS[1])
if not current or #current > tonumber(ARGV[4]) then current = '' end
if current ~= ARGV[1] then return current end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
end
return 1
