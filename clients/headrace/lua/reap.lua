-- REAP: take over what dead consumers of the lanes held, and forget the consumers.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the consumer that takes over   2 how many jobs at most
-- Returns  for each job: lane, lane entry id, how often it was delivered, the state in its record, its fields
--
-- A consumer is dead when its heartbeat key is gone; that and the claim are one step, so nobody who lives
-- loses anything. Entries that were deleted meanwhile fall out of the pending list by being claimed.
local prefix, me, room = KEYS[1], ARGV[1], tonumber(ARGV[2])
local taken = {}

local function state_of(fields)
  for field = 1, #fields, 2 do
    if fields[field] == 'e' then
      local id = string.match(fields[field + 1], '^%S+ (%S+)')
      return id and string.match(redis.call('GET', prefix .. 'j:' .. id) or '', '^%S+') or 'waiting'
    end
  end
  return 'waiting'
end

local function take_over(lane, stream, name, pending)
  local left = redis.call('XPENDING', stream, 'g', '-', '+', room, name)
  for _, row in ipairs(left) do
    local entry = redis.call('XCLAIM', stream, 'g', me, 0, row[1])[1]
    if entry then
      taken[#taken + 1] = {lane, entry[1], row[4] + 1, state_of(entry[2]), entry[2]}
      room = room - 1
    end
  end
  if #left == pending then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', name) end
end

for lane = 0, 23 do
  local stream = prefix .. 'q:' .. lane
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, 'g')
  for _, flat in ipairs(consumers.err and {} or consumers) do
    local consumer = {}
    for field = 1, #flat, 2 do consumer[flat[field]] = flat[field + 1] end
    local name = consumer['name']
    if room > 0 and name ~= me and redis.call('EXISTS', prefix .. 'hb:' .. name) == 0 then
      take_over(lane, stream, name, consumer['pending'])
    end
  end
end
return taken
