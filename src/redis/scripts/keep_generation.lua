-- Keeps a generation that is there for a short while only, or not at all.
--
-- KEYS[1]  the key of the tag
-- ARGV[1]  the generation
-- ARGV[2]  the same as it is written for a short while
-- ARGV[3]  how long to keep it, in milliseconds; 0: for good
-- ARGV[4]  1: it has been there for a short while, so that it is not kept where there is none any more
--
-- Returns 1 when it was kept, 0 when the tag has another one, has lost it, or it is kept already.

local value = redis.pcall('GET', KEYS[1])
if value ~= ARGV[2] and (value or ARGV[4] == '1') then return 0 end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
end
return 1
