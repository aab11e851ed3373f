-- RELEASE: give everything back that a consumer holds, at its orderly end or when another generation reads. It does not count as a delivery.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the consumer   2 how many jobs at most   3 "1" if the consumer goes on living; else it is forgotten
-- Returns  how many jobs it holds still: call again until 0
--
-- The jobs go to the consumer "released", which never has a heartbeat, so whoever reaps next has them.
local prefix, me, room, stays = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local left, moved = 0, false

for lane = 0, 23 do
  local stream = prefix .. 'q:' .. lane
  local held = redis.pcall('XPENDING', stream, 'g', '-', '+', room + 1, me)
  if not held.err then
    for n, row in ipairs(held) do
      if room > 0 then
        redis.call('XCLAIM', stream, 'g', 'released', 0, row[1], 'RETRYCOUNT', math.max(0, row[4] - 1), 'JUSTID')
        room, moved = room - 1, true
      else
        left = left + 1
      end
    end
    if left == 0 and not stays then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', me) end
  end
end
-- DUE looks for consumers in the last lane: a read of what is delivered there puts this one into it, and changes no more.
if moved then redis.pcall('XREADGROUP', 'GROUP', 'g', 'released', 'COUNT', 1, 'STREAMS', prefix .. 'q:23', '0') end
if left == 0 and not stays then redis.call('DEL', prefix .. 'hb:' .. me) end
return left
