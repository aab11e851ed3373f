-- SUBMIT: hand jobs of one lane over. All or none of the call's effects survive a crash.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 wire version   2 priority (0-2)   3 token of this call   4 inbox   5 tenant
--          6 retry policy: attempts,backoff ms,longest backoff ms,code+code... or "-" for the service's own
--          then, for each job: id, deadline (ms from now, 0 for none), traceparent or "-", payload
-- Returns  one number a job: 0 accepted, 1 duplicate, 2 lane full, 3 tenant full, 4 unknown model;
--          or an error that begins with "ERR SUBMIT", and then no job of the call was touched
--
-- Replay-safe: a call repeated with its token finds its own records and answers 0 again.
--
-- A tenant's jobs go to one of eight lanes of their priority, lest a flood of one tenant hide the jobs of
-- another from the routers: a tenant that comes anew gets the emptiest, and keeps it while it has live jobs.
local prefix, version, priority, token, tenant, retry = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local HEAD = 6
local jobs = (#ARGV - HEAD) / 4
local codes = {}

-- Words of an envelope must stay words: one job with a space in its name would lie in the lane for ever.
local function wrong()
  local function is_name(text) return #text <= 64 and string.find(text, '^[%w._:-]+$') end
  if jobs < 1 or jobs % 1 ~= 0 then return 'takes 6 arguments, then 4 for each job' end
  if jobs > 128 then return 'takes at most 128 jobs' end
  if not (#version <= 4 and string.find(version, '^%d+$') and string.find(priority, '^[012]$') and is_name(token)) then
    return 'needs a version, a priority of 0 to 2 and a token'
  end
  if not (is_name(ARGV[4]) and is_name(tenant)) then return 'inbox and tenant must be names' end
  if #retry > 256 or not string.find(retry, '^[%w,+_-]+$') then return 'a retry policy is none' end
  for at = HEAD, #ARGV - 4, 4 do
    if not is_name(ARGV[at + 1]) then return 'an id is no name' end
    local wait, trace = ARGV[at + 2], ARGV[at + 3]
    if #wait > 12 or not string.find(wait, '^%d+$') then return 'a deadline is no number of milliseconds' end
    if #trace > 64 or not string.find(trace, '^[%x-]+$') then return 'a traceparent is none' end
    if #ARGV[at + 4] > 1048576 then return 'a payload is larger than 1048576 bytes' end
  end
end
local mistake = wrong()
if mistake then return redis.error_reply('ERR SUBMIT ' .. mistake) end

local limits = redis.call('HMGET', prefix .. 'meta', 'lane_capacity', 'tenant_capacity')
local function known(record)
  local text = redis.call('GET', record)
  if not text then return nil end
  return string.match(text, '^%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%S+)') == token and 0 or 1
end

if not limits[1] then
  -- Nobody serves it, or it is about to be removed; a repeated call still finds the jobs that it handed over.
  for n = 1, jobs do codes[n] = known(prefix .. 'j:' .. ARGV[HEAD + n * 4 - 3]) == 0 and 0 or 4 end
  return codes
end

local function jobs_of(part) return redis.call('XLEN', prefix .. 'q:' .. (priority + 3 * part)) end
local part = tonumber(redis.call('HGET', prefix .. 'tl', tenant))
local newcomer = not part
local others = redis.call('HLEN', prefix .. 'tl') - (part and 1 or 0)
local load = {}
if others > 0 then
  for n = 0, 7 do load[n] = jobs_of(n) end
else
  load[part or 0] = jobs_of(part or 0)
end
local waiting = 0
for n = 0, 7 do
  waiting = waiting + (load[n] or 0)
  if newcomer and load[n] and (not part or load[n] < load[part]) then part = n end
end

local lane = tostring(priority + 3 * part)
local stream = prefix .. 'q:' .. lane
local room = tonumber(limits[1]) - waiting
local tenant_room = tonumber(limits[2]) - (tonumber(redis.call('HGET', prefix .. 'ten', tenant)) or 0)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local behind = string.format(' %.0f %s ', now, token)
local between = string.format(' %s %s 1 ', ARGV[4], tenant)
local accepted = 0

for n = 1, jobs do
  local at = HEAD + (n - 1) * 4
  local id, wait = ARGV[at + 1], tonumber(ARGV[at + 2])
  local record = prefix .. 'j:' .. id
  if accepted >= room or accepted >= tenant_room then
    codes[n] = known(record) or (accepted >= room and 2 or 3)
  else
    local deadline = wait > 0 and string.format('%.0f', now + wait) or '0'
    local envelope = version .. ' ' .. id .. between .. deadline .. behind .. ARGV[at + 3] .. ' ' .. retry
    local entry = redis.call('XADD', stream, '*', 'e', envelope, 'p', ARGV[at + 4])
    if redis.call('SET', record, 'waiting ' .. lane .. ' ' .. entry .. ' 0 ' .. envelope, 'NX') then
      accepted = accepted + 1
      codes[n] = 0
    else
      -- Duplicates are rare: an entry made and deleted costs less than asking first for every job.
      redis.call('XDEL', stream, entry)
      codes[n] = known(record)
    end
  end
end

if accepted > 0 then
  redis.call('HINCRBY', prefix .. 'cnt', 'submitted', accepted)
  redis.call('HINCRBY', prefix .. 'ten', tenant, accepted)
  if newcomer then redis.call('HSET', prefix .. 'tl', tenant, part) end
end
return codes
