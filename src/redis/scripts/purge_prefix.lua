-- Puts a purge by prefix on the list of them.
--
-- KEYS[1]  the version of the list, <lineage>.<version>.<end in ms>
-- KEYS[2]  the list: a field for each prefix, with its generation and the end of its use in milliseconds, and the
--          field "" with the version
-- ARGV[1]  the prefix
-- ARGV[2]  its generation
-- ARGV[3]  the list's new version
-- ARGV[4]  a new lineage, for a list that is lost or full
-- ARGV[5]  how many prefixes there are at most
-- ARGV[6]  how long the purge is to be remembered, in milliseconds
--
-- Returns the version before and now, whether everything is dropped because the list was lost or full, and whether
-- entries were taken off it.

local call, pcall = redis.call, redis.pcall
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local before = pcall('GET', KEYS[1])
if type(before) ~= 'string' then before = '' end
local lineage, list, ends = string.match(before, '^(%x+)%.(%x+)%.(%d+)$')
local widened, pruned, fields = 0, 0, 0
if list and tonumber(ends) >= now then
  if pcall('HGET', KEYS[2], '') == list then
    local all = call('HGETALL', KEYS[2])
    for i = 1, #all, 2 do
      local over = tonumber(string.match(all[i + 1], ' (%d+)$') or '')
      if all[i] ~= '' and (not over or over < now) then
        call('HDEL', KEYS[2], all[i])
        pruned = 1
      elseif all[i] ~= '' and all[i] ~= ARGV[1] then
        fields = fields + 1
      end
    end
    if fields >= tonumber(ARGV[5]) then widened = 1 end
  else
    widened = 1
  end
else
  if list then pruned = 1 else lineage = string.match(before, '^%x+$') end
  if not lineage then widened = 1 end
  call('DEL', KEYS[2])
end

if widened == 1 then
  call('DEL', KEYS[2])
  call('SET', KEYS[1], ARGV[4])
  return {before, ARGV[4], 1, pruned}
end
local ends = string.format('%.0f', now + ARGV[6])
call('HSET', KEYS[2], '', ARGV[3], ARGV[1], ARGV[2] .. ' ' .. ends)
call('PEXPIRE', KEYS[2], ARGV[6] * 2)
local after = lineage .. '.' .. ARGV[3] .. '.' .. ends
call('SET', KEYS[1], after)
return {before, after, 0, pruned}
