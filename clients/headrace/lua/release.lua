-- RELEASE: give everything back that a consumer holds, at its orderly end. It does not count as a delivery.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the consumer   2 how many jobs at most
-- Returns  how many jobs it holds still: call again until 0
--
-- The jobs go to the consumer "released", which never has a heartbeat, so whoever reaps next has them.
local prefix, me, room = KEYS[1], ARGV[1], tonumber(ARGV[2])
local left = 0

for lane = 0, 23 do
  local stream = prefix .. 'q:' .. lane
  local held = redis.pcall('XPENDING', stream, 'g', '-', '+', room + 1, me)
  if not held.err then
    for n, row in ipairs(held) do
      if room > 0 then
        redis.call('XCLAIM', stream, 'g', 'released', 0, row[1], 'RETRYCOUNT', math.max(0, row[4] - 1), 'JUSTID')
        room = room - 1
      else
        left = left + 1
      end
    end
    if left == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, 'g', me) end
  end
end
if left == 0 then redis.call('DEL', prefix .. 'hb:' .. me) end
return left
