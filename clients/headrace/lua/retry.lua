-- RETRY: take jobs back from whoever has them, for another attempt at once or later. It counts as an attempt.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     for each job: lane, lane entry id, envelope, delay in ms
-- Returns  one number a job: 1 it will run again, 0 somebody ended or moved it before,
--          2 it is to be cancelled, and nothing was changed: end it so
--
-- The fence is the one of COMPLETE: whoever acknowledges the entry decides. The next attempt has an entry of
-- its own, so an answer that was computed for this one comes late and is dropped.
local prefix = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function payload_of(stream, entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  if not found then return nil end
  for field = 1, #found[2], 2 do
    if found[2][field] == 'p' then return found[2][field + 1] end
  end
end

local function retry(lane, entry, envelope, delay)
  local stream = prefix .. 'q:' .. lane
  local version, id, inbox, tenant, attempt, deadline, rest =
    string.match(envelope, '^(%S+) (%S+) (%S+) (%S+) (%d+) (%d+)( .*)$')
  local record = prefix .. 'j:' .. id
  local payload = payload_of(stream, entry)
  if not payload then return 0 end
  if string.match(redis.call('GET', record) or '', '^%S+') == 'cancelling' then return 2 end
  if redis.call('XACK', stream, 'g', entry) == 0 then return 0 end
  redis.call('XDEL', stream, entry)
  local again = table.concat({version, id, inbox, tenant, attempt + 1, deadline}, ' ') .. rest
  if delay <= 0 then
    local fresh = redis.call('XADD', stream, '*', 'e', again, 'p', payload)
    redis.call('SET', record, 'waiting ' .. lane .. ' ' .. fresh .. ' 0 ' .. again)
  else
    local due = now + delay
    if tonumber(deadline) > 0 then due = math.min(due, tonumber(deadline)) end
    redis.call('ZADD', prefix .. 'dz', string.format('%.0f', due), id)
    redis.call('HSET', prefix .. 'd:' .. id, 'l', lane, 'e', again, 'p', payload)
    redis.call('SET', record, 'delayed ' .. lane .. ' 0-0 0 ' .. again)
  end
  return 1
end

local codes = {}
for n = 1, #ARGV / 4 do
  local at = n * 4 - 3
  codes[n] = retry(ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]))
end
return codes
