-- AUDIT: the conservation of jobs, at one moment: submitted = ended, by status + live.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- Returns  pairs of name and number: every counter, then "live" (entries of all lanes, and delayed jobs),
--          "delayed" (those of them that wait for their next attempt) and "dead_letters"
local prefix = KEYS[1]
local numbers = redis.call('HGETALL', prefix .. 'cnt')
local delayed = redis.call('ZCARD', prefix .. 'dz')
local live = delayed
for lane = 0, 23 do
  live = live + redis.call('XLEN', prefix .. 'q:' .. lane)
end
local function tell(name, number)
  numbers[#numbers + 1] = name
  numbers[#numbers + 1] = tostring(number)
end
tell('live', live)
tell('delayed', delayed)
tell('dead_letters', redis.call('XLEN', prefix .. 'dlq'))
return numbers
