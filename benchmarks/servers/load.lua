-- Posts bodies read from files, in turn, and prints one line of JSON when all is done.
-- Arguments: a file with one header a line ("Name: value"), then the files with the bodies.

local prepared = {}
local turn = 0

local function read(path)
   local file = assert(io.open(path, "rb"))
   local text = file:read("*a")
   file:close()
   return text
end

function init(args)
   for line in io.lines(args[1]) do
      local name, value = line:match("^([^:]+):%s*(.*)$")
      wrk.headers[name] = value
   end
   for i = 2, #args do
      prepared[i - 1] = wrk.format("POST", nil, nil, read(args[i]))
   end
end

function request()
   turn = turn % #prepared + 1
   return prepared[turn]
end

function done(summary, latency, requests)
   local errors = summary.errors
   local parts = {
      '"requests": ' .. summary.requests,
      '"seconds": ' .. string.format("%.6f", summary.duration / 1e6),
      '"p50_ms": ' .. string.format("%.4f", latency:percentile(50) / 1e3),
      '"p99_ms": ' .. string.format("%.4f", latency:percentile(99) / 1e3),
      '"refused": ' .. errors.connect,
      '"broken": ' .. (errors.read + errors.write),
      '"timed_out": ' .. errors.timeout,
      '"bad_status": ' .. errors.status,
   }
   io.write("\n{" .. table.concat(parts, ", ") .. "}\n")
end
