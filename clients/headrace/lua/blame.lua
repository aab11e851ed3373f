-- BLAME: note how often a job failed while it ran alone on its replica, where the next router finds it.
--
-- KEYS[1]  the model's key prefix, "hr:{model}:"
-- ARGV     1 the consumer that holds the job   2 its lane   3 its lane entry id   4 how often it failed alone
-- Returns  1 noted, 0 another consumer has it now
--
-- The number goes into the delivery count of the pending list, in hundreds: it needs no key of its own, is
-- handed over with the job by REAP, and is gone with it.
local stream = KEYS[1] .. 'q:' .. ARGV[2]
local mine = redis.pcall('XPENDING', stream, 'g', ARGV[3], ARGV[3], 1, ARGV[1])
if mine.err or not mine[1] then return 0 end
local count = ARGV[4] * 100 + mine[1][4] % 100
redis.call('XCLAIM', stream, 'g', ARGV[1], 0, ARGV[3], 'RETRYCOUNT', count, 'JUSTID')
return 1
