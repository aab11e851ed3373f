-- START: begin to run jobs. Whoever calls it owns their streams from now on, and is told what was delivered of them.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the owner: when its jobs were dispatched (Unix ms), "-", and a token of this attempt to run them
--          then, for each job: lane, lane entry id, job id, "1" if it is streamed or "0"
-- Returns  for each job a list: 0 not yours, 1 yours or 2 to be cancelled, and behind 1 and 2 the bodies of its chunks;
--          or an error that begins with "ERR START", and then no job of the call was touched
--
-- The list `s:<id>` has the owner, then the chunks in order, byte for byte as they went into the inbox. A job is not
-- yours if it has ended, was handed back, or was dispatched again later and begun by whoever got it then: so a caller
-- that was held up takes nothing from his successor. Replay-safe: the same owner is told the same again.
local prefix, owner = KEYS[1], ARGV[1]
local HEAD = 1
local jobs = (#ARGV - HEAD) / 4

local function wrong()
  local function is_name(text) return #text <= 64 and string.find(text, '^[%w._:-]+$') end
  if jobs < 1 or jobs % 1 ~= 0 then return 'takes an owner, then 4 arguments for each job' end
  if jobs > 128 then return 'takes at most 128 jobs' end
  if not (is_name(owner) and string.find(owner, '^%d+%-.')) then return 'needs an owner: a time in ms, "-" and a token' end
  for at = HEAD, #ARGV - 4, 4 do
    local lane, entry = ARGV[at + 1], ARGV[at + 2]
    if not string.find(lane, '^%d%d?$') or tonumber(lane) > 23 then return 'a lane is none' end
    if #entry > 41 or not string.find(entry, '^%d+%-%d+$') then return 'a lane entry id is none' end
    if not is_name(ARGV[at + 3]) then return 'an id is no name' end
    if not string.find(ARGV[at + 4], '^[01]$') then return 'a job is streamed, 1, or not, 0' end
  end
end
local mistake = wrong()
if mistake then return redis.error_reply('ERR START ' .. mistake) end

local function dispatched(whose) return tonumber(string.match(whose, '^%d+')) end

-- Whoever ends jobs of this model looks for owners and lists from now on.
local marked = false
local function mark()
  if not marked then redis.call('HSET', prefix .. 'meta', 'streams', '1') end
  marked = true
end

local function start(lane, entry, id, streams)
  local pending = redis.pcall('XPENDING', prefix .. 'q:' .. lane, 'g', entry, entry, 1)
  if pending.err or not pending[1] then return {0} end
  mark()
  local state = string.match(redis.call('GET', prefix .. 'j:' .. id) or '', '^%S+')
  local reply = {state == 'cancelling' and 2 or 1}
  if streams == '0' then return reply end
  local list = prefix .. 's:' .. id
  local before = redis.call('LINDEX', list, 0)
  if not before then
    redis.call('RPUSH', list, owner)
    return reply
  end
  if dispatched(owner) < dispatched(before) then return {0} end
  redis.call('LSET', list, 0, owner)
  for n, chunk in ipairs(redis.call('LRANGE', list, 1, -1)) do reply[n + 1] = chunk end
  return reply
end

local replies = {}
for n = 1, jobs do
  local at = HEAD + (n - 1) * 4
  replies[n] = start(ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
return replies
