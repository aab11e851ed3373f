-- REPLAY: submit dead letters again, as they were, for a first attempt without a deadline.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     the ids of the dead letters
-- Returns  one number each: 1 submitted again, 0 it is no longer there, 2 a job of its id is live, and it stays
--
-- The job had its terminal entry and will have another, which is why this counts as a submission.
local prefix = KEYS[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local LIVE = {waiting = true, delayed = true, cancelling = true}

local function replay(letter)
  local found = redis.call('XRANGE', prefix .. 'dlq', letter, letter)[1]
  if not found then return 0 end
  local kept = {}
  for field = 1, #found[2], 2 do kept[found[2][field]] = found[2][field + 1] end
  local version, id, inbox, tenant, token, rest =
    string.match(kept['e'], '^(%S+) (%S+) (%S+) (%S+) %S+ %S+ %S+ (%S+)( .*)$')
  local record = prefix .. 'j:' .. id
  if LIVE[string.match(redis.call('GET', record) or '', '^%S+')] then return 2 end
  redis.call('XDEL', prefix .. 'dlq', letter)
  local part = tonumber(redis.call('HGET', prefix .. 'tl', tenant)) or math.floor(kept['l'] / 3)
  local lane = kept['l'] % 3 + 3 * part
  local envelope = table.concat({version, id, inbox, tenant, 1, 0, now, token}, ' ') .. rest
  local entry = redis.call('XADD', prefix .. 'q:' .. lane, '*', 'e', envelope, 'p', kept['p'])
  redis.call('SET', record, 'waiting ' .. lane .. ' ' .. entry .. ' 0 ' .. envelope)
  redis.call('HINCRBY', prefix .. 'cnt', 'submitted', 1)
  redis.call('HINCRBY', prefix .. 'ten', tenant, 1)
  redis.call('HSETNX', prefix .. 'tl', tenant, part)
  return 1
end

local codes = {}
for n = 1, #ARGV do codes[n] = replay(ARGV[n]) end
return codes
