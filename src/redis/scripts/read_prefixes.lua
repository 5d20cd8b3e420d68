-- Reads the list of purges by prefix.
--
-- KEYS[1]  the version of the list
-- KEYS[2]  the list, as in purge_prefix.lua
-- ARGV[1]  how many fields there are at most
--
-- Returns the version, empty for none, and the list's fields with their values: none where there are more.

local version, fields = redis.pcall('GET', KEYS[1]), redis.pcall('HLEN', KEYS[2])
if type(version) ~= 'string' then version = '' end
if type(fields) ~= 'number' or fields > tonumber(ARGV[1]) then return {version, {}} end
return {version, redis.call('HGETALL', KEYS[2])}
