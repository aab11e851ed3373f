-- COMPLETE: end jobs. Acknowledge, delete, answer, close the record and count, in one atomic step.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     for each job: priority, lane entry id, envelope, status, body
-- Returns  one number a job: 1 this call ended it, 0 somebody had ended it before
--
-- The fence is XACK's return value: whoever acknowledges first writes the one terminal entry, and
-- everybody later, a replay of this call included, is told 0 and changes nothing.
local prefix = KEYS[1]
local retention = redis.call('HGET', prefix .. 'meta', 'retention_ms') or '3600000'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local finished = string.format(' %.0f ', now)
local codes, ended, tenants, inboxes = {}, {}, {}, {}

for n = 1, #ARGV / 5 do
  local at = (n - 1) * 5
  local priority, entry, envelope, status = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local lane = prefix .. 'q:' .. priority
  if redis.call('XACK', lane, 'g', entry) == 0 then
    codes[n] = 0
  else
    redis.call('XDEL', lane, entry)
    local version, id, inbox, tenant, attempt = string.match(envelope, '^(%S+) (%S+) (%S+) (%S+) (%S+)')
    local box = prefix .. 'r:' .. inbox
    local head = version .. ' ' .. id .. ' ' .. status .. ' ' .. attempt
    local answer = redis.call('XADD', box, '*', 'e', head, 'r', ARGV[at + 5])
    redis.call('SET', prefix .. 'j:' .. id, status .. ' ' .. priority .. ' ' .. answer .. finished .. envelope,
      'PX', retention)
    ended[status] = (ended[status] or 0) + 1
    tenants[tenant] = (tenants[tenant] or 0) + 1
    inboxes[box] = true
    codes[n] = 1
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
