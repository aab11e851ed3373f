-- FORGET: delete what is kept of a model that nobody serves any more.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- Returns  0 it is forgotten; 1 but its dead letters and its counts are kept; 2 jobs of it are live, and 3 a router
--          still reads it: then nothing was changed
--
-- What has a TTL goes by itself. A model with dead letters is kept closed, so that they can be looked at and replayed.
local prefix = KEYS[1]

local live = redis.call('ZCARD', prefix .. 'dz')
for lane = 0, 23 do
  local stream = prefix .. 'q:' .. lane
  live = live + redis.call('XLEN', stream)
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, 'g')
  for _, flat in ipairs(consumers.err and {} or consumers) do
    for field = 1, #flat, 2 do
      if flat[field] == 'name' and redis.call('EXISTS', prefix .. 'hb:' .. flat[field + 1]) == 1 then return 3 end
    end
  end
end
if live > 0 then return 2 end

for lane = 0, 23 do redis.call('DEL', prefix .. 'q:' .. lane) end
redis.call('DEL', prefix .. 'ten', prefix .. 'tl', prefix .. 'dz', prefix .. 'c', prefix .. 'gen', prefix .. 'pools')
if redis.call('XLEN', prefix .. 'dlq') > 0 then
  redis.call('HDEL', prefix .. 'meta', 'lane_capacity', 'closed')
  return 1
end
redis.call('DEL', prefix .. 'meta', prefix .. 'cnt', prefix .. 'dlq')
return 0
