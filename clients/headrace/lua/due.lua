-- DUE: which of several models have something for a router to see to. It only reads.
--
-- KEYS[1]  the key prefix of the first model, "hr:{model}:"
-- ARGV     1 the router's consumer   2 "1" to look at generations and routers as well, else "0"
--          then, for each model: its key prefix, the generation that led it when this router last asked or "-", the
--          id behind which it reads requests to cancel or "-"
-- Returns  one number for each model, a sum: 1 requests to cancel were not read yet, 2 delayed jobs are due,
--          4 another generation leads, or the leading one gives no sign of life, 8 a consumer of its lanes is dead
--
-- Several models share a call where one server has all their keys; on a cluster each has a call of its own. What is
-- rare is asked for of all models at once. What cannot be read counts as due: whoever sees to it learns why.
--
-- Consumers are looked for in the last lane only. It is among those that a consumer reads first, for what it may have
-- been given before, which puts it there; REAP and RELEASE go through the lanes in their order, so whoever is left in
-- any of them is left in the last.
local me, whole = ARGV[1], ARGV[2] == '1'
local HEAD, EACH, MOST = 2, 3, 1000
local models = (#ARGV - HEAD) / EACH
local CANCELS, DELAYED, LEADER, DEAD = 1, 2, 4, 8
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local due = {}

local function prefix_of(n) return ARGV[HEAD + n * EACH - 2] end

local function mark(n, bit)
  if math.floor(due[n] / bit) % 2 == 0 then due[n] = due[n] + bit end
end

-- Tells `each` the place of every key from one place to another that stands, or with `gone` of every one that does not.
local function find(keys, gone, from, to, each)
  local asked = to - from + 1
  if asked < 1 then return end
  local stand = asked <= MOST and redis.pcall('EXISTS', unpack(keys, from, to))
  local found = type(stand) == 'number' and (gone and asked - stand or stand)
  if found == 0 then return end
  if found == asked or asked == 1 then
    for place = from, to do each(place) end
    return
  end
  local middle = math.floor((from + to) / 2)
  find(keys, gone, from, middle, each)
  find(keys, gone, middle + 1, to, each)
end

local function some(reply) return reply.err or #reply > 0 end

local cancels, delayed = {}, {}
for n = 1, models do
  due[n] = 0
  cancels[n], delayed[n] = prefix_of(n) .. 'c', prefix_of(n) .. 'dz'
end
find(cancels, false, 1, models, function(n)
  local after = ARGV[HEAD + n * EACH]
  local first = after == '-' and after or '(' .. after
  if some(redis.pcall('XRANGE', cancels[n], first, '+', 'COUNT', 1)) then mark(n, CANCELS) end
end)
find(delayed, false, 1, models, function(n)
  if some(redis.pcall('ZRANGEBYSCORE', delayed[n], 0, now, 'LIMIT', 0, 1)) then mark(n, DELAYED) end
end)
if not whole then return due end

local hearts, of = {}, {}
local function watch(n, who, bit)
  if who == me then return end
  hearts[#hearts + 1] = prefix_of(n) .. 'hb:' .. who
  of[#hearts] = {n, bit}
end

for n = 1, models do
  local leading = redis.pcall('HMGET', prefix_of(n) .. 'gen', 'number', 'by')
  if leading.err or leading[1] ~= ARGV[HEAD + n * EACH - 1] or (leading[2] or '') == '' then
    mark(n, LEADER)
  else
    watch(n, leading[2], LEADER)
  end
  local consumers = redis.pcall('XINFO', 'CONSUMERS', prefix_of(n) .. 'q:23', 'g')
  if consumers.err then mark(n, DEAD) end
  for _, flat in ipairs(consumers.err and {} or consumers) do
    for field = 1, #flat, 2 do
      if flat[field] == 'name' then watch(n, flat[field + 1], DEAD) end
    end
  end
end
find(hearts, true, 1, #hearts, function(place) mark(of[place][1], of[place][2]) end)
return due
