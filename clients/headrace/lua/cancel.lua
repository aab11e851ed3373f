-- CANCEL: stop jobs that have not ended.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 body of the terminal entry, then the ids
-- Returns  one number an id: 0 unknown, 1 cancelled: it never runs, 2 requested: it is in somebody's hands, and
--          ends as cancelled unless its answer is written first, 3 it had ended
--
-- A request stands in the record, so it outlives routers; the stream `c` tells those that live.
local prefix, body = KEYS[1], ARGV[1]
local meta = redis.call('HMGET', prefix .. 'meta', 'retention_ms', 'streams')
local retention, streams = meta[1] or '3600000', meta[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The trace context of a job, for its consumer, as another word of the entry; most have none.
local function trace_of(envelope)
  if not string.find(envelope, ' 00-', 1, true) then return '' end
  return string.match(envelope, '( 00%-%x+%-%x+%-%x+) ') or ''
end

local function finish(lane, envelope)
  local version, id, inbox, tenant, attempt = string.match(envelope, '^(%S+) (%S+) (%S+) (%S+) (%S+)')
  local box = prefix .. 'r:' .. inbox
  local head = version .. ' ' .. id .. ' cancelled ' .. attempt
  local answer = redis.call('XADD', box, '*', 'e', head .. trace_of(envelope), 'r', body)
  redis.call('PEXPIRE', box, retention)
  redis.call('SET', prefix .. 'j:' .. id,
    string.format('cancelled %s %s %.0f %s', lane, answer, now, envelope), 'PX', retention)
  if streams then redis.call('DEL', prefix .. 's:' .. id) end
  redis.call('HINCRBY', prefix .. 'cnt', 'cancelled', 1)
  if redis.call('HINCRBY', prefix .. 'ten', tenant, -1) <= 0 then
    redis.call('HDEL', prefix .. 'ten', tenant)
    redis.call('HDEL', prefix .. 'tl', tenant)
  end
  return 1
end

local function request(id, record, state, rest)
  if state ~= 'cancelling' then
    redis.call('SET', record, 'cancelling' .. rest)
    redis.call('XADD', prefix .. 'c', 'MAXLEN', '~', 10000, '*', 'j', id)
    redis.call('PEXPIRE', prefix .. 'c', retention)
  end
  return 2
end

local function cancel(id)
  local record = prefix .. 'j:' .. id
  local state, rest = string.match(redis.call('GET', record) or '', '^(%S+)( .*)$')
  if not state then return 0 end
  local lane, entry, envelope = string.match(rest, '^ (%S+) (%S+) %S+ (.*)$')
  if state == 'delayed' then
    redis.call('ZREM', prefix .. 'dz', id)
    redis.call('DEL', prefix .. 'd:' .. id)
    return finish(lane, envelope)
  end
  if state ~= 'waiting' and state ~= 'cancelling' then return 3 end
  local stream = prefix .. 'q:' .. lane
  if #redis.call('XPENDING', stream, 'g', entry, entry, 1) == 0 and redis.call('XDEL', stream, entry) == 1 then
    return finish(lane, envelope)
  end
  return request(id, record, state, rest)
end

local codes = {}
for n = 2, #ARGV do codes[n - 1] = cancel(ARGV[n]) end
return codes
