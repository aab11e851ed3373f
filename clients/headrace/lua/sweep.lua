-- SWEEP: what has to happen now and then. Put delayed jobs that are due back into their lanes, and measure
-- how fast jobs end.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 how many jobs at most
-- Returns  how many jobs went back to their lanes
--
-- Every router calls it; whoever comes first does the work.
local prefix = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local due = redis.call('ZRANGEBYSCORE', prefix .. 'dz', 0, string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local job = redis.call('HMGET', prefix .. 'd:' .. id, 'l', 'e', 'p')
  local lane, envelope = job[1], job[2]
  if lane then
    local entry = redis.call('XADD', prefix .. 'q:' .. lane, '*', 'e', envelope, 'p', job[3])
    redis.call('SET', prefix .. 'j:' .. id, 'waiting ' .. lane .. ' ' .. entry .. ' 0 ' .. envelope)
  end
  redis.call('ZREM', prefix .. 'dz', id)
  redis.call('DEL', prefix .. 'd:' .. id)
end

local OVER_MS = 2000
local last = redis.call('HMGET', prefix .. 'meta', 'measured_ms', 'measured_ended', 'drain_per_s')
local passed = now - (tonumber(last[1]) or 0)
if passed >= OVER_MS or passed < 0 then
  local ended = 0
  for _, count in ipairs(redis.call('HMGET', prefix .. 'cnt', 'ok', 'error', 'expired', 'cancelled', 'dead')) do
    ended = ended + (tonumber(count) or 0)
  end
  local rate = math.max(0, ended - (tonumber(last[2]) or ended)) * 1000 / math.max(passed, 1)
  rate = last[3] and (rate + tonumber(last[3])) / 2 or rate
  redis.call('HSET', prefix .. 'meta', 'measured_ms', string.format('%.0f', now),
    'measured_ended', string.format('%.0f', ended), 'drain_per_s', string.format('%.2f', rate))
end
return #due
