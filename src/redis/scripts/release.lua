-- Gives a claim back, if the caller still has it.
--
-- KEYS[1]  the key of the claim
-- ARGV[1]  who claimed
-- ARGV[2]  for how long nobody need claim, since the value will not come, in milliseconds; 0: somebody else may make it
--
-- Returns 1 when it was the caller's, else 0.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], '-', 'PX', ARGV[2])
end
return 1
