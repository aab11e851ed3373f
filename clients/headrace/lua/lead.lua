-- LEAD: which generation of the application reads the lanes, asked by a router of one of them.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the router's generation   2 its consumer   3 "1" if it can run jobs, else "0"
--          4 "1" if it may take over from a newer generation that gives no sign of life, else "0"
-- Returns  the generation that reads, and 1 if a router of it lives that can run jobs, else 0
--
-- A newer generation takes over once it can run jobs; until then the older goes on. The leading one names a router of
-- its own that can; when that one's heartbeat is gone, another of its routers takes its place, or else an older
-- generation that can run jobs takes over again. Replay-safe: it says what holds afterwards.
local prefix, mine, me, can, may = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local leading = prefix .. 'gen'
local held = redis.call('HMGET', leading, 'number', 'by')
local number, by = tonumber(held[1]), held[2] or ''

local function lives() return by ~= '' and (by == me or redis.call('EXISTS', prefix .. 'hb:' .. by) == 1) end

local function take()
  redis.call('HSET', leading, 'number', ARGV[1], 'by', can and me or '')
  number, by = mine, can and me or ''
end

if not number then
  take()
elseif mine == number then
  if (can and not lives()) or (not can and by == me) then take() end
elseif can and (mine > number or (may and not lives())) then
  take()
end
return {string.format('%.0f', number), lives() and 1 or 0}
