-- COMPLETE: end jobs. Acknowledge, delete, answer, close the record and count, in one atomic step.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     for each job: priority, lane entry id, envelope, status, body
-- Returns  one number a job: 1 this call ended it, 0 somebody had ended it before
--
-- The fence is XACK: whoever acknowledges first writes the one terminal entry, and everybody later, a replay
-- of this call included, is told 0 and changes nothing. Entries are acknowledged by lanes, many at once. If
-- all of a lane's were still pending, all are this call's to end; if not, XDEL tells which: an entry is only
-- ever deleted in the step that acknowledges it, so one that is still there was acknowledged just now.
local prefix = KEYS[1]
local retention = redis.call('HGET', prefix .. 'meta', 'retention_ms') or '3600000'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local finished = string.format(' %.0f ', now)
local jobs = #ARGV / 5
local lanes, codes, ended, tenants, inboxes = {}, {}, {}, {}, {}

for n = 1, jobs do
  local lane = prefix .. 'q:' .. ARGV[n * 5 - 4]
  local entries = lanes[lane]
  if not entries then
    entries = {}
    lanes[lane] = entries
  end
  entries[#entries + 1] = ARGV[n * 5 - 3]
  codes[n] = 1
end

for lane, entries in pairs(lanes) do
  if redis.call('XACK', lane, 'g', unpack(entries)) == #entries then
    redis.call('XDEL', lane, unpack(entries))
  else
    for n = 1, jobs do
      if prefix .. 'q:' .. ARGV[n * 5 - 4] == lane then
        codes[n] = redis.call('XDEL', lane, ARGV[n * 5 - 3])
      end
    end
  end
end

for n = 1, jobs do
  if codes[n] == 1 then
    local priority, envelope, status = ARGV[n * 5 - 4], ARGV[n * 5 - 2], ARGV[n * 5 - 1]
    local version, id, inbox, tenant, attempt = string.match(envelope, '^(%S+) (%S+) (%S+) (%S+) (%S+)')
    local box = prefix .. 'r:' .. inbox
    local head = version .. ' ' .. id .. ' ' .. status .. ' ' .. attempt
    local answer = redis.call('XADD', box, '*', 'e', head, 'r', ARGV[n * 5])
    redis.call('SET', prefix .. 'j:' .. id, status .. ' ' .. priority .. ' ' .. answer .. finished .. envelope,
      'PX', retention)
    ended[status] = (ended[status] or 0) + 1
    tenants[tenant] = (tenants[tenant] or 0) + 1
    inboxes[box] = true
  end
end

for status, count in pairs(ended) do
  redis.call('HINCRBY', prefix .. 'cnt', status, count)
end
for tenant, count in pairs(tenants) do
  if redis.call('HINCRBY', prefix .. 'ten', tenant, -count) <= 0 then
    redis.call('HDEL', prefix .. 'ten', tenant)
  end
end
for box in pairs(inboxes) do
  redis.call('PEXPIRE', box, retention)
  redis.call('XTRIM', box, 'MINID', '~', string.format('%.0f', now - retention))
end
return codes
