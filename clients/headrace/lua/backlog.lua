-- BACKLOG: how much work a model has, for whoever decides how many replicas it gets. Changes nothing.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- Returns  how many jobs were ever submitted; how many wait that no consumer took yet; how many are delivered and have
--          no answer; how long the oldest has waited, in milliseconds (0: none waits)
local prefix = KEYS[1]
local counts = redis.call('HMGET', prefix .. 'cnt', 'submitted', 'ok', 'error', 'expired', 'cancelled', 'dead')
local submitted = tonumber(counts[1]) or 0
local live = submitted
for status = 2, 6 do
  live = live - (tonumber(counts[status]) or 0)
end
if live <= 0 then
  return {submitted, 0, 0, 0}
end
local waiting, delivered, oldest = 0, 0, nil
for lane = 0, 23 do
  local key = prefix .. 'q:' .. lane
  local length = redis.call('XLEN', key)
  if length > 0 then
    -- Entries are delivered in their order: behind the last that is pending, none is.
    local pending = redis.call('XPENDING', key, 'g')
    delivered = delivered + pending[1]
    if length > pending[1] then
      waiting = waiting + length - pending[1]
      local from = pending[3] and '(' .. pending[3] or '-'
      local first = redis.call('XRANGE', key, from, '+', 'COUNT', 1)[1]
      local ms = first and tonumber(string.match(first[1], '^%d+'))
      if ms and (not oldest or ms < oldest) then
        oldest = ms
      end
    end
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {submitted, waiting, delivered, oldest and math.max(1, now - oldest) or 0}
