-- COMPLETE: end jobs. Acknowledge, delete, answer, close the record and count, in one atomic step.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     for each job: lane, lane entry id, envelope, status, body. The status of a job that is streamed has
--          "@" and its owner behind it, as START was told
-- Returns  one number a job: 1 this call ended it, 0 somebody had ended it before, or has its stream now
--
-- The fence is XACK: whoever acknowledges first writes the one terminal entry, and everybody later, a replay
-- of this call included, is told 0 and changes nothing. Entries are acknowledged by lanes, many at once. If
-- all of a lane's were still pending, all are this call's to end; if not, XDEL tells which: an entry is only
-- ever deleted in the step that acknowledges it, so one that is still there was acknowledged just now.
--
-- An answer that names an owner is refused unless its job's stream is still his: so the text of an answer is what was
-- delivered of it, and what follows that. The lists behind streams go with their jobs, all of a call at once; where no
-- job was ever streamed, nothing is asked.
--
-- A job that ends as `dead` is kept as a dead letter: its envelope, its lane, its payload and its answer.
local prefix = KEYS[1]
local limits = redis.call('HMGET', prefix .. 'meta', 'retention_ms', 'dead_letter_capacity', 'streams')
local retention, dead_letters, streams = limits[1] or '3600000', limits[2] or '10000', limits[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local finished = string.format(' %.0f ', now)
local jobs = #ARGV / 5
local lanes, codes, payloads, ended, tenants, inboxes, lists = {}, {}, {}, {}, {}, {}, {}

-- The trace context of a job, for its consumer, as another word of the entry; most have none.
local function trace_of(envelope)
  if not string.find(envelope, ' 00-', 1, true) then return '' end
  return string.match(envelope, '( 00%-%x+%-%x+%-%x+) ') or ''
end

local function list_of(n) return prefix .. 's:' .. string.match(ARGV[n * 5 - 2], '^%S+ (%S+)') end

-- Whether somebody else has the job's stream. The owner is taken off the status.
local function fenced(n)
  local at = string.find(ARGV[n * 5 - 1], '@', 1, true)
  if not at then return false end
  local owner = string.sub(ARGV[n * 5 - 1], at + 1)
  ARGV[n * 5 - 1] = string.sub(ARGV[n * 5 - 1], 1, at - 1)
  local owned = redis.call('LINDEX', list_of(n), 0)
  return owned and owned ~= owner
end

for n = 1, jobs do
  if streams and fenced(n) then
    codes[n] = 0
  else
    local lane = prefix .. 'q:' .. ARGV[n * 5 - 4]
    local entries = lanes[lane]
    if not entries then
      entries = {}
      lanes[lane] = entries
    end
    entries[#entries + 1] = ARGV[n * 5 - 3]
    codes[n] = 1
    if ARGV[n * 5 - 1] == 'dead' then
      local found = redis.call('XRANGE', lane, ARGV[n * 5 - 3], ARGV[n * 5 - 3])[1]
      if found then
        for field = 1, #found[2], 2 do
          if found[2][field] == 'p' then payloads[n] = found[2][field + 1] end
        end
      end
    end
  end
end

for lane, entries in pairs(lanes) do
  if redis.call('XACK', lane, 'g', unpack(entries)) == #entries then
    redis.call('XDEL', lane, unpack(entries))
  else
    for n = 1, jobs do
      if codes[n] == 1 and prefix .. 'q:' .. ARGV[n * 5 - 4] == lane then
        codes[n] = redis.call('XDEL', lane, ARGV[n * 5 - 3])
      end
    end
  end
end

for n = 1, jobs do
  if codes[n] == 1 then
    local lane, envelope, status = ARGV[n * 5 - 4], ARGV[n * 5 - 2], ARGV[n * 5 - 1]
    local version, id, inbox, tenant, attempt = string.match(envelope, '^(%S+) (%S+) (%S+) (%S+) (%S+)')
    local box = prefix .. 'r:' .. inbox
    local head = version .. ' ' .. id .. ' ' .. status .. ' ' .. attempt .. trace_of(envelope)
    local answer = redis.call('XADD', box, '*', 'e', head, 'r', ARGV[n * 5])
    redis.call('SET', prefix .. 'j:' .. id, status .. ' ' .. lane .. ' ' .. answer .. finished .. envelope,
      'PX', retention)
    ended[status] = (ended[status] or 0) + 1
    tenants[tenant] = (tenants[tenant] or 0) + 1
    inboxes[box] = true
    if streams then lists[#lists + 1] = list_of(n) end
    if payloads[n] then
      redis.call('XADD', prefix .. 'dlq', 'MAXLEN', '~', dead_letters, '*',
        'e', envelope, 'l', lane, 'p', payloads[n], 'r', ARGV[n * 5])
    end
  end
end

for status, count in pairs(ended) do
  redis.call('HINCRBY', prefix .. 'cnt', status, count)
end
for tenant, count in pairs(tenants) do
  if redis.call('HINCRBY', prefix .. 'ten', tenant, -count) <= 0 then
    redis.call('HDEL', prefix .. 'ten', tenant)
    redis.call('HDEL', prefix .. 'tl', tenant)
  end
end
if lists[1] then redis.call('DEL', unpack(lists)) end
for box in pairs(inboxes) do
  redis.call('PEXPIRE', box, retention)
  redis.call('XTRIM', box, 'MINID', '~', string.format('%.0f', now - retention))
end
return codes
