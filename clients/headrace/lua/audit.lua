-- AUDIT: the conservation of jobs, at one moment: submitted = ended, by status + waiting in the lanes.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- Returns  pairs of name and number: every counter, then "live" (entries of all lanes)
local prefix = KEYS[1]
local numbers = redis.call('HGETALL', prefix .. 'cnt')
local live = 0
for priority = 0, 2 do
  live = live + redis.call('XLEN', prefix .. 'q:' .. priority)
end
numbers[#numbers + 1] = 'live'
numbers[#numbers + 1] = tostring(live)
return numbers
