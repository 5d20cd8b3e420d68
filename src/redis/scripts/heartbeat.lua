-- Notes that an instance is alive and tells how many are.
--
-- KEYS[1]  a sorted set: instances by the time they were last heard of, ms on the clock of this Redis
-- ARGV[1]  this instance
-- ARGV[2]  how long an instance counts after it was heard of, ms; the key lives as long after the last one
--
-- Reply    instances alive, this one included

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
