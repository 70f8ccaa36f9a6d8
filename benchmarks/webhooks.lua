-- wrk's script: every request is a webhook of its own. Arguments: a word that no other run uses, and the token.
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init(arguments)
  prefix = arguments[1] .. "-" .. number .. "-"
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Type: application/json\r\n"
    .. "X-Webhook-Token: " .. arguments[2] .. "\r\nUser-Agent: benchmark\r\nContent-Length: "
  sent = 0
end

function request()
  if sent % 100 == 0 then
    timestamp = os.date("!%Y-%m-%dT%H:%M:%SZ")
  end
  sent = sent + 1
  local body = '{"id":"' .. prefix .. sent .. '","entityType":"USER","eventType":"UPDATE","timestamp":"' .. timestamp .. '"}'
  return head .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, _)
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '\nRESULT {"answers": %d, "refused": %d, "lost": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.errors.status, lost, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
