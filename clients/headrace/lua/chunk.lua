-- CHUNK: deliver parts of answers that are still being made.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     for each chunk: owner as START was told, inbox, head of the entry (version, id, "chunk", attempt),
--          how many chunks the job has before this one, body
-- Returns  one number a chunk: 1 it is in the inbox and in the job's list, 2 so it is, and the job is to be cancelled,
--          0 the caller is not the owner, or the job has ended: drop it,
--          3 the list is not as the caller says, since the server lost writes: nothing was written, START again;
--          or an error that begins with "ERR CHUNK", and then no chunk of the call was written
--
-- The fence is the owner, which the last START set. Replay-safe: a chunk that is in the list at its place is not
-- written again.
local prefix = KEYS[1]
local chunks = #ARGV / 5

local function wrong()
  local function is_name(text) return #text <= 64 and string.find(text, '^[%w._:-]+$') end
  if chunks < 1 or chunks % 1 ~= 0 then return 'takes 5 arguments for each chunk' end
  if chunks > 128 then return 'takes at most 128 chunks' end
  for at = 0, #ARGV - 5, 5 do
    if not is_name(ARGV[at + 1]) then return 'an owner is none' end
    if not is_name(ARGV[at + 2]) then return 'an inbox must be a name' end
    local version, id, attempt = string.match(ARGV[at + 3], '^(%d+) ([%w._:-]+) chunk (%d+)$')
    if not (version and #version <= 4 and #id <= 64 and #attempt <= 9) then
      return 'a head is not version, id, "chunk" and attempt'
    end
    if #ARGV[at + 4] > 9 or not string.find(ARGV[at + 4], '^%d+$') then return 'a number of chunks is none' end
    if #ARGV[at + 5] > 1048576 then return 'a body is larger than 1048576 bytes' end
  end
end
local mistake = wrong()
if mistake then return redis.error_reply('ERR CHUNK ' .. mistake) end

local LIVE = {waiting = true, delayed = true, cancelling = true}
local boxes = {}

local function deliver(owner, inbox, head, before, body)
  local id = string.match(head, '^%S+ (%S+)')
  local list, box = prefix .. 's:' .. id, prefix .. 'r:' .. inbox
  local state = string.match(redis.call('GET', prefix .. 'j:' .. id) or '', '^%S+')
  local owned = redis.call('LINDEX', list, 0)
  if not owned then return LIVE[state] and 3 or 0 end
  if owned ~= owner then return 0 end
  local there = redis.call('LLEN', list) - 1
  if there == before then
    redis.call('XADD', box, '*', 'e', head, 'r', body)
    redis.call('RPUSH', list, body)
    boxes[box] = true
  elseif redis.call('LINDEX', list, before + 1) ~= body then
    return 3
  end
  return state == 'cancelling' and 2 or 1
end

local codes = {}
for n = 1, chunks do
  local at = n * 5 - 4
  codes[n] = deliver(ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4])
end

local retention = redis.call('HGET', prefix .. 'meta', 'retention_ms') or '3600000'
local time = redis.call('TIME')
local oldest = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) - retention)
for box in pairs(boxes) do
  redis.call('PEXPIRE', box, retention)
  redis.call('XTRIM', box, 'MINID', '~', oldest)
end
return codes
