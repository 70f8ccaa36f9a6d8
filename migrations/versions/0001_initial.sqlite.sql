CREATE TABLE inbox ( -- One row per accepted webhook, immutable. Written by the receiver before it answers 200.
    -- number of the event in arrival order; gaps mean nothing
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- sender: a name of [sources] in inbox.toml
    source TEXT NOT NULL,
    -- key of the event: another request of the source with this key is a duplicate; has a digest in place of an entity's id
    dedup_key TEXT NOT NULL,
    -- type of the entity that changed, such as USER; empty when the event has no entity
    entity_type TEXT,
    -- id of the entity that changed, as the source gives it; a pseudonym after erasure
    entity_id TEXT,
    -- event type, verbatim from the sender
    event_type TEXT NOT NULL,
    -- effect on the entity: create, update, delete or other
    action TEXT NOT NULL,
    -- the sender's own id of the event, if any
    event_id TEXT,
    -- the event's own time, to the microsecond; its arrival where it has no plausible one
    occurred_at TEXT NOT NULL,
    -- time at which the receiver had read the request
    received_at TEXT NOT NULL,
    -- names of the routes that matched when it arrived; empty: unrouted
    routes JSON NOT NULL,
    -- Content-Type of the body
    content_type TEXT NOT NULL,
    -- size of the body in bytes; stays after its payload is gone
    body_bytes INTEGER NOT NULL,
    -- true: the body is UTF-8 without NUL; the view event has it as text
    body_is_text BOOLEAN DEFAULT false NOT NULL,
    -- SHA-256 of the body; stays after its payload is gone
    body_sha256 BLOB NOT NULL,
    -- W3C trace context of the request: of the receiver's span where that is sampled, else the sender's; empty after erasure
    traceparent TEXT,
    -- time at which the entity was erased: entity_id is a pseudonym, and nothing else names it
    erased_at TEXT,
    CONSTRAINT uq_inbox_source_dedup_key UNIQUE (source, dedup_key),
    CONSTRAINT ck_inbox_action CHECK (action IN ('create', 'update', 'delete', 'other')),
    CONSTRAINT ck_inbox_occurred_at_is_readable CHECK (date(substr(occurred_at, 1, 10)) IS substr(occurred_at, 1, 10) AND occurred_at >= '0001-01-01 00:00:00.000000Z' AND (length(occurred_at) = 10 OR substr(occurred_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_inbox_received_at_is_readable CHECK (date(substr(received_at, 1, 10)) IS substr(received_at, 1, 10) AND received_at >= '0001-01-01 00:00:00.000000Z' AND (length(received_at) = 10 OR substr(received_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_inbox_routes_is_readable CHECK (CASE WHEN json_valid(routes) THEN json_type(routes) = 'array' ELSE 0 END),
    CONSTRAINT ck_inbox_erased_at_is_readable CHECK (date(substr(erased_at, 1, 10)) IS substr(erased_at, 1, 10) AND erased_at >= '0001-01-01 00:00:00.000000Z' AND (length(erased_at) = 10 OR substr(erased_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_inbox_entity ON inbox (source, entity_type, entity_id, seq);

CREATE INDEX ix_inbox_event_id ON inbox (event_id, seq) WHERE event_id IS NOT NULL;

CREATE TABLE inbox_payload ( -- Headers and body of each event, until retention or erasure deletes them. The views and commands join it by seq.
    -- the event: inbox.seq
    seq INTEGER NOT NULL,
    -- allow-listed request headers
    headers JSON NOT NULL,
    -- body of the request, byte for byte
    body BLOB NOT NULL,
    CONSTRAINT pk_inbox_payload PRIMARY KEY (seq),
    CONSTRAINT ck_inbox_payload_headers_is_readable CHECK (headers IS NULL OR CASE WHEN json_valid(headers) THEN json_type(headers) = 'object' ELSE 0 END)
);

CREATE TABLE edited_body ( -- Edited bodies, append-only. The body of the event stays as it is, and both are deleted together.
    -- number of the edited body, as in the selection of its replay and in the detail of its fact `replayed`
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- the event: inbox.seq
    seq BIGINT NOT NULL,
    -- body that an operator wrote; a replay that names it delivers it in place of the event's
    body BLOB NOT NULL
);

CREATE INDEX ix_edited_body_seq ON edited_body (seq);

CREATE TABLE duplicate_request ( -- A duplicate: a request whose key is already stored. The answer was 200 with the stored seq. sum(times) counts them.
    -- number of the duplicate
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- the event that it duplicates: inbox.seq
    seq BIGINT NOT NULL,
    -- time of its arrival
    received_at TEXT NOT NULL,
    -- SHA-256 of its body
    body_sha256 BLOB NOT NULL,
    -- its body, only when it differs from the event's
    body BLOB,
    -- time at which a relay judged it; empty: not judged yet
    handled_at TEXT,
    -- number of requests in this row: after the first 20 of an event, further ones are only counted
    times BIGINT DEFAULT 1 NOT NULL,
    -- if times is more than 1: time of the last arrival
    last_received_at TEXT,
    -- reason why it could not be judged; clear it to have it judged again
    error TEXT,
    CONSTRAINT ck_duplicate_request_received_at_is_readable CHECK (date(substr(received_at, 1, 10)) IS substr(received_at, 1, 10) AND received_at >= '0001-01-01 00:00:00.000000Z' AND (length(received_at) = 10 OR substr(received_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_duplicate_request_handled_at_is_readable CHECK (date(substr(handled_at, 1, 10)) IS substr(handled_at, 1, 10) AND handled_at >= '0001-01-01 00:00:00.000000Z' AND (length(handled_at) = 10 OR substr(handled_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_duplicate_request_last_received_at_is_readable CHECK (date(substr(last_received_at, 1, 10)) IS substr(last_received_at, 1, 10) AND last_received_at >= '0001-01-01 00:00:00.000000Z' AND (length(last_received_at) = 10 OR substr(last_received_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_duplicate_request_open ON duplicate_request (seq) WHERE handled_at IS NULL;

CREATE INDEX ix_duplicate_request_seq ON duplicate_request (seq);

CREATE TABLE rejected_request ( -- A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.
    -- number of the rejected request
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- time of its arrival
    received_at TEXT NOT NULL,
    -- source in the URL, known or unknown
    source TEXT NOT NULL,
    -- HTTP status of the answer
    status INTEGER NOT NULL,
    -- cause in one word, as in the metrics
    cause TEXT NOT NULL,
    -- reason in one sentence
    reason TEXT NOT NULL,
    -- invalid field, if any
    field TEXT,
    -- address of the client
    remote_address TEXT,
    -- allow-listed request headers, only of an authenticated sender
    headers JSON,
    -- SHA-256 of the body
    body_sha256 BLOB NOT NULL,
    -- the body, only of an authenticated sender, so that it can be readmitted
    body BLOB,
    -- time at which an operator readmitted it; empty: not readmitted
    readmitted_at TEXT,
    -- the event that it became or duplicates: inbox.seq; the first, when its body has several
    readmitted_seq BIGINT,
    -- operator who readmitted it
    readmitted_by TEXT,
    -- reason for readmitting it
    readmit_reason TEXT,
    CONSTRAINT ck_rejected_request_received_at_is_readable CHECK (date(substr(received_at, 1, 10)) IS substr(received_at, 1, 10) AND received_at >= '0001-01-01 00:00:00.000000Z' AND (length(received_at) = 10 OR substr(received_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_rejected_request_headers_is_readable CHECK (headers IS NULL OR CASE WHEN json_valid(headers) THEN json_type(headers) = 'object' ELSE 0 END),
    CONSTRAINT ck_rejected_request_readmitted_at_is_readable CHECK (date(substr(readmitted_at, 1, 10)) IS substr(readmitted_at, 1, 10) AND readmitted_at >= '0001-01-01 00:00:00.000000Z' AND (length(readmitted_at) = 10 OR substr(readmitted_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_rejected_request_whole ON rejected_request (id) WHERE body IS NOT NULL;

CREATE TABLE open_delivery ( -- Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.
    -- the event: inbox.seq
    seq BIGINT NOT NULL,
    -- the route it takes: a name of [routes] in inbox.toml
    route TEXT NOT NULL,
    -- the unit of order on the route: TYPE|ID of the entity, * or the event itself
    lane TEXT NOT NULL,
    -- copy of inbox.occurred_at: order in the lane, before seq
    occurred_at TEXT NOT NULL,
    -- received, waiting (behind its head), ready, in_flight, blocked or dead
    state TEXT NOT NULL,
    -- attempts used in this run
    attempt INTEGER DEFAULT 0 NOT NULL,
    -- number of times it was replayed or re-armed
    run INTEGER DEFAULT 0 NOT NULL,
    -- attempts in a row whose lease expired
    crashes INTEGER DEFAULT 0 NOT NULL,
    -- if ready: time of the next attempt; database clock
    due_at TEXT,
    -- if in_flight: end of the lease; database clock
    lease_until TEXT,
    -- if in_flight: fencing token of the claim; a result with another token is discarded
    lease_token BIGINT,
    -- if in_flight: relay_node.id of the process that delivers it
    relay_node TEXT,
    CONSTRAINT pk_open_delivery PRIMARY KEY (seq, route),
    CONSTRAINT ck_open_delivery_state CHECK (state IN ('received', 'waiting', 'ready', 'in_flight', 'blocked', 'dead')),
    CONSTRAINT ck_open_delivery_due_when_ready CHECK ((state = 'ready') = (due_at IS NOT NULL)),
    CONSTRAINT ck_open_delivery_due_at CHECK (due_at BETWEEN '1970-01-01 00:00:00.000000Z' AND '9000-01-01 00:00:00.000000Z'),
    CONSTRAINT ck_open_delivery_leased_when_in_flight CHECK ((state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)),
    CONSTRAINT ck_open_delivery_occurred_at_is_readable CHECK (date(substr(occurred_at, 1, 10)) IS substr(occurred_at, 1, 10) AND occurred_at >= '0001-01-01 00:00:00.000000Z' AND (length(occurred_at) = 10 OR substr(occurred_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_open_delivery_due_at_is_readable CHECK (date(substr(due_at, 1, 10)) IS substr(due_at, 1, 10) AND due_at >= '0001-01-01 00:00:00.000000Z' AND (length(due_at) = 10 OR substr(due_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_open_delivery_lease_until_is_readable CHECK (date(substr(lease_until, 1, 10)) IS substr(lease_until, 1, 10) AND lease_until >= '0001-01-01 00:00:00.000000Z' AND (length(lease_until) = 10 OR substr(lease_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_open_delivery_blocked ON open_delivery (route, lane) WHERE state = 'blocked';

CREATE INDEX ix_open_delivery_dead ON open_delivery (route, lane, occurred_at, seq) WHERE state = 'dead';

CREATE INDEX ix_open_delivery_given_up ON open_delivery (seq, route) WHERE state IN ('dead', 'blocked');

CREATE INDEX ix_open_delivery_in_flight ON open_delivery (seq, route) WHERE state = 'in_flight';

CREATE INDEX ix_open_delivery_ready ON open_delivery (route, due_at, seq) WHERE state = 'ready';

CREATE INDEX ix_open_delivery_received ON open_delivery (seq) WHERE state = 'received';

CREATE INDEX ix_open_delivery_suspect ON open_delivery (due_at, seq) WHERE state = 'ready' AND crashes >= 2;

CREATE INDEX ix_open_delivery_waiting ON open_delivery (route, lane, occurred_at, seq) WHERE state = 'waiting';

CREATE UNIQUE INDEX ux_open_delivery_head ON open_delivery (route, lane) WHERE state IN ('ready', 'in_flight', 'blocked');

CREATE TABLE lane ( -- Last delivery of each lane. One row per route and lane that ever succeeded; an event's own lane has none.
    -- the route
    route TEXT NOT NULL,
    -- the lane, as in open_delivery
    lane TEXT NOT NULL,
    -- time of the newest event delivered in this lane
    occurred_at TEXT NOT NULL,
    -- the newest event delivered in this lane: inbox.seq
    seq BIGINT NOT NULL,
    -- time at which that delivery fetched the entity; sync routes only
    fetch_began_at TEXT,
    -- the source's own time of the applied state
    last_modified TEXT,
    -- SHA-256 of the data sent downstream
    applied_hash BLOB,
    CONSTRAINT pk_lane PRIMARY KEY (route, lane),
    CONSTRAINT ck_lane_occurred_at_is_readable CHECK (date(substr(occurred_at, 1, 10)) IS substr(occurred_at, 1, 10) AND occurred_at >= '0001-01-01 00:00:00.000000Z' AND (length(occurred_at) = 10 OR substr(occurred_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_lane_fetch_began_at_is_readable CHECK (date(substr(fetch_began_at, 1, 10)) IS substr(fetch_began_at, 1, 10) AND fetch_began_at >= '0001-01-01 00:00:00.000000Z' AND (length(fetch_began_at) = 10 OR substr(fetch_began_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_lane_last_modified_is_readable CHECK (date(substr(last_modified, 1, 10)) IS substr(last_modified, 1, 10) AND last_modified >= '0001-01-01 00:00:00.000000Z' AND (length(last_modified) = 10 OR substr(last_modified, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE delivery_log ( -- Facts about deliveries, append-only. The last fact of a delivery has its state.
    -- number of the fact
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- time of recording; database clock
    at TEXT NOT NULL,
    -- the event: inbox.seq
    seq BIGINT NOT NULL,
    -- the route
    route TEXT NOT NULL,
    -- kind of fact; explained in docs/reference/states.md
    kind TEXT NOT NULL,
    -- state of the delivery after it; ready and received are open
    state TEXT NOT NULL,
    -- attempts used in this run after it
    attempt INTEGER NOT NULL,
    -- number of times that it had been replayed or re-armed
    run INTEGER DEFAULT 0 NOT NULL,
    -- attempts in a row whose lease had expired
    crashes INTEGER DEFAULT 0 NOT NULL,
    -- relay_node.id of the process that recorded it; empty for an operator's command
    relay_node TEXT,
    -- calls, statuses, durations, error, next due time, operator and reason
    detail JSON NOT NULL,
    CONSTRAINT ck_delivery_log_kind CHECK (kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over', 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected', 'erased')),
    CONSTRAINT ck_delivery_log_state CHECK (state IN ('received', 'ready', 'blocked', 'dead', 'ended')),
    CONSTRAINT ck_delivery_log_at_is_readable CHECK (date(substr(at, 1, 10)) IS substr(at, 1, 10) AND at >= '0001-01-01 00:00:00.000000Z' AND (length(at) = 10 OR substr(at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_delivery_log_detail_is_readable CHECK (detail IS NULL OR CASE WHEN json_valid(detail) THEN json_type(detail) = 'object' ELSE 0 END)
);

CREATE INDEX ix_delivery_log_at ON delivery_log (at);

CREATE INDEX ix_delivery_log_attempt ON delivery_log (id) WHERE kind IN ('attempt_failed', 'abandoned', 'dead');

CREATE INDEX ix_delivery_log_delivery ON delivery_log (seq, route, id);

CREATE TABLE order_lock ( -- One row, locked by every transaction that may end or create the head of a lane on any route.
    -- always 1
    id INTEGER NOT NULL,
    CONSTRAINT pk_order_lock PRIMARY KEY (id),
    CONSTRAINT ck_order_lock_one_row CHECK (id = 1)
);

CREATE TABLE route_lock ( -- One row for each route, locked by every transaction that ends or creates the head of a lane on it. Added by relays, and never removed. Empty on SQLite.
    -- name of the route
    route TEXT NOT NULL,
    CONSTRAINT pk_route_lock PRIMARY KEY (route)
);

CREATE TABLE route_failure ( -- One row for each route whose last attempt failed. Its next success deletes it.
    -- name of the route
    route TEXT NOT NULL,
    -- endpoint whose call failed last: destination or api
    kind TEXT NOT NULL,
    -- its name in inbox.toml
    name TEXT NOT NULL,
    -- time of the first failure since the last success; database clock
    began_at TEXT NOT NULL,
    -- attempts that failed since then
    failures BIGINT DEFAULT 0 NOT NULL,
    -- event of the last one: inbox.seq
    seq BIGINT NOT NULL,
    CONSTRAINT pk_route_failure PRIMARY KEY (route),
    CONSTRAINT ck_route_failure_kind CHECK (kind IN ('destination', 'api')),
    CONSTRAINT ck_route_failure_began_at_is_readable CHECK (date(substr(began_at, 1, 10)) IS substr(began_at, 1, 10) AND began_at >= '0001-01-01 00:00:00.000000Z' AND (length(began_at) = 10 OR substr(began_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE payload_lock ( -- One row. Transactions that open deliveries of stored events share its lock; those that delete payloads or events hold it alone.
    -- always 1
    id INTEGER NOT NULL,
    CONSTRAINT pk_payload_lock PRIMARY KEY (id),
    CONSTRAINT ck_payload_lock_one_row CHECK (id = 1)
);

CREATE TABLE pruner ( -- One row: the relay or person that prunes, and the time from which ages count.
    -- always 1
    id INTEGER NOT NULL,
    -- during pruning: end of the lease; database clock
    lease_until TEXT,
    -- during pruning: relay_node.id of the relay, or the person, host and process
    held_by TEXT,
    -- time at which the last round ended; database clock
    ran_at TEXT,
    -- time from which ages count: the database clock; after a step forward, it catches up a day per hour
    clock TEXT,
    CONSTRAINT pk_pruner PRIMARY KEY (id),
    CONSTRAINT ck_pruner_one_row CHECK (id = 1),
    CONSTRAINT ck_pruner_lease_until_is_readable CHECK (date(substr(lease_until, 1, 10)) IS substr(lease_until, 1, 10) AND lease_until >= '0001-01-01 00:00:00.000000Z' AND (length(lease_until) = 10 OR substr(lease_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_pruner_ran_at_is_readable CHECK (date(substr(ran_at, 1, 10)) IS substr(ran_at, 1, 10) AND ran_at >= '0001-01-01 00:00:00.000000Z' AND (length(ran_at) = 10 OR substr(ran_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_pruner_clock_is_readable CHECK (date(substr(clock, 1, 10)) IS substr(clock, 1, 10) AND clock >= '0001-01-01 00:00:00.000000Z' AND (length(clock) = 10 OR substr(clock, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE pruning ( -- Progress of retention: one row for each kind of rows that expires.
    -- kind of rows: a key of [retention] in inbox.toml
    kind TEXT NOT NULL,
    -- number up to which expired rows are gone; rows left below it must stay
    position BIGINT DEFAULT 0 NOT NULL,
    -- time at which the lap last began at the first row; once a day
    lap_began_at TEXT,
    -- rows older than this have expired
    pruned_until TEXT,
    -- rows pruned in all
    rows BIGINT DEFAULT 0 NOT NULL,
    -- seconds since the oldest remaining row expired; 0: none is left
    behind_seconds BIGINT DEFAULT 0 NOT NULL,
    -- time since which behind_seconds is more than a day
    behind_since TEXT,
    -- time of the last batch; database clock
    ran_at TEXT,
    -- rows that could not be deleted and were skipped, in the current lap
    passed_over BIGINT DEFAULT 0 NOT NULL,
    -- error of the last batch; empty: it succeeded
    error TEXT,
    CONSTRAINT pk_pruning PRIMARY KEY (kind),
    CONSTRAINT ck_pruning_lap_began_at_is_readable CHECK (date(substr(lap_began_at, 1, 10)) IS substr(lap_began_at, 1, 10) AND lap_began_at >= '0001-01-01 00:00:00.000000Z' AND (length(lap_began_at) = 10 OR substr(lap_began_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_pruning_pruned_until_is_readable CHECK (date(substr(pruned_until, 1, 10)) IS substr(pruned_until, 1, 10) AND pruned_until >= '0001-01-01 00:00:00.000000Z' AND (length(pruned_until) = 10 OR substr(pruned_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_pruning_behind_since_is_readable CHECK (date(substr(behind_since, 1, 10)) IS substr(behind_since, 1, 10) AND behind_since >= '0001-01-01 00:00:00.000000Z' AND (length(behind_since) = 10 OR substr(behind_since, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_pruning_ran_at_is_readable CHECK (date(substr(ran_at, 1, 10)) IS substr(ran_at, 1, 10) AND ran_at >= '0001-01-01 00:00:00.000000Z' AND (length(ran_at) = 10 OR substr(ran_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE payload_reveal ( -- One row each time the operator's page shows the headers and body of an event, written before it does.
    -- number of the reveal
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- time of the reveal; database clock
    at TEXT NOT NULL,
    -- the event whose headers and body were shown: inbox.seq
    seq BIGINT NOT NULL,
    -- person or program that saw them, as the operator's page knows it
    who TEXT NOT NULL,
    -- reason given
    reason TEXT NOT NULL,
    CONSTRAINT ck_payload_reveal_who CHECK (trim(who) <> ''),
    CONSTRAINT ck_payload_reveal_reason CHECK (NOT (trim(reason, ' ' || char(9, 10, 13, 37) || '!"#$&''()*+,-./:;<=>?@[\]^_`{|}~…') = '')),
    CONSTRAINT ck_payload_reveal_at_is_readable CHECK (date(substr(at, 1, 10)) IS substr(at, 1, 10) AND at >= '0001-01-01 00:00:00.000000Z' AND (length(at) = 10 OR substr(at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_payload_reveal_seq ON payload_reveal (seq);

CREATE TABLE relay_node ( -- One row per run of a relay process.
    -- new at every start of a relay process
    id TEXT NOT NULL,
    -- machine that it runs on
    host TEXT NOT NULL,
    -- process id on that machine
    pid INTEGER NOT NULL,
    -- version of Inbox Relay
    version TEXT NOT NULL,
    -- time of its start; database clock
    started_at TEXT NOT NULL,
    -- time of its last heartbeat; database clock
    heartbeat_at TEXT NOT NULL,
    -- time of a graceful stop; empty while it runs or if it died
    stopped_at TEXT,
    -- routes of its configuration, each with the kinds and names of the gates on its way
    routes JSON,
    -- SHA-256 of the apis, destinations and routes that it runs with
    config_hash TEXT,
    -- time at which it took up that configuration; database clock
    configured_at TEXT,
    -- steps that fail now, with the errors; empty: none
    failing JSON,
    CONSTRAINT pk_relay_node PRIMARY KEY (id),
    CONSTRAINT ck_relay_node_started_at_is_readable CHECK (date(substr(started_at, 1, 10)) IS substr(started_at, 1, 10) AND started_at >= '0001-01-01 00:00:00.000000Z' AND (length(started_at) = 10 OR substr(started_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_node_heartbeat_at_is_readable CHECK (date(substr(heartbeat_at, 1, 10)) IS substr(heartbeat_at, 1, 10) AND heartbeat_at >= '0001-01-01 00:00:00.000000Z' AND (length(heartbeat_at) = 10 OR substr(heartbeat_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_node_stopped_at_is_readable CHECK (date(substr(stopped_at, 1, 10)) IS substr(stopped_at, 1, 10) AND stopped_at >= '0001-01-01 00:00:00.000000Z' AND (length(stopped_at) = 10 OR substr(stopped_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_node_routes_is_readable CHECK (routes IS NULL OR CASE WHEN json_valid(routes) THEN json_type(routes) = 'object' ELSE 0 END),
    CONSTRAINT ck_relay_node_configured_at_is_readable CHECK (date(substr(configured_at, 1, 10)) IS substr(configured_at, 1, 10) AND configured_at >= '0001-01-01 00:00:00.000000Z' AND (length(configured_at) = 10 OR substr(configured_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_node_failing_is_readable CHECK (failing IS NULL OR CASE WHEN json_valid(failing) THEN json_type(failing) = 'object' ELSE 0 END)
);

CREATE INDEX ix_relay_node_started_at ON relay_node (started_at);

CREATE TABLE gate ( -- Gates in front of deliveries: pauses, circuit breakers and rate limits, shared by all relays.
    -- source, route, destination, api or entity
    kind TEXT NOT NULL,
    -- its name in inbox.toml; SOURCE|TYPE|ID for an entity
    name TEXT NOT NULL,
    -- time at which an operator paused it; empty: not paused
    paused_at TEXT,
    -- operator who paused it
    paused_by TEXT,
    -- reason for the pause
    pause_reason TEXT,
    -- closed, open, half_open or retired
    breaker TEXT DEFAULT 'closed' NOT NULL,
    -- if open: time of the next probe; database clock
    breaker_until TEXT,
    -- cause of its opening
    breaker_cause TEXT,
    -- number of times it opened in a row; each doubles the open time
    open_count INTEGER DEFAULT 0 NOT NULL,
    -- failed calls in the current window
    failures INTEGER DEFAULT 0 NOT NULL,
    -- calls in the current window
    calls INTEGER DEFAULT 0 NOT NULL,
    -- start of the current window
    window_began_at TEXT,
    -- rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead
    rate_used_until TEXT,
    -- rate hold: time until which the endpoint asked not to be called; database clock
    held_until TEXT,
    -- header that asked for it
    hold_reason TEXT,
    CONSTRAINT pk_gate PRIMARY KEY (kind, name),
    CONSTRAINT ck_gate_kind CHECK (kind IN ('source', 'route', 'destination', 'api', 'entity')),
    CONSTRAINT ck_gate_breaker CHECK (breaker IN ('closed', 'open', 'half_open', 'retired')),
    CONSTRAINT ck_gate_paused_at_is_readable CHECK (date(substr(paused_at, 1, 10)) IS substr(paused_at, 1, 10) AND paused_at >= '0001-01-01 00:00:00.000000Z' AND (length(paused_at) = 10 OR substr(paused_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_gate_breaker_until_is_readable CHECK (date(substr(breaker_until, 1, 10)) IS substr(breaker_until, 1, 10) AND breaker_until >= '0001-01-01 00:00:00.000000Z' AND (length(breaker_until) = 10 OR substr(breaker_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_gate_window_began_at_is_readable CHECK (date(substr(window_began_at, 1, 10)) IS substr(window_began_at, 1, 10) AND window_began_at >= '0001-01-01 00:00:00.000000Z' AND (length(window_began_at) = 10 OR substr(window_began_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_gate_rate_used_until_is_readable CHECK (date(substr(rate_used_until, 1, 10)) IS substr(rate_used_until, 1, 10) AND rate_used_until >= '0001-01-01 00:00:00.000000Z' AND (length(rate_used_until) = 10 OR substr(rate_used_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_gate_held_until_is_readable CHECK (date(substr(held_until, 1, 10)) IS substr(held_until, 1, 10) AND held_until >= '0001-01-01 00:00:00.000000Z' AND (length(held_until) = 10 OR substr(held_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE relay_command ( -- Command of an operator, by SQL or command line; the daemon executes and answers it.
    -- number of the command
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- replay, retry, cancel, unblock, pause, resume, sweep, erase, prune, readmit, stop or continue
    kind TEXT NOT NULL,
    -- its selection, as a JSON object with the keys of its kind
    selection JSON DEFAULT '{}' NOT NULL,
    -- reason given by the operator
    reason TEXT NOT NULL,
    -- operator; by default the database role
    asked_by TEXT DEFAULT 'sqlite' NOT NULL,
    -- time of the request; database clock
    asked_at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z') NOT NULL,
    -- true: only answer what it would change
    dry_run BOOLEAN DEFAULT false NOT NULL,
    -- asked, running, done, failed, refused or cancelled
    state TEXT DEFAULT 'asked' NOT NULL,
    -- progress: everything up to this seq is done
    progress_seq BIGINT,
    -- deliveries changed so far; rows, for a command of another kind
    affected BIGINT DEFAULT 0 NOT NULL,
    -- time of its end
    finished_at TEXT,
    -- answer of the daemon
    answer TEXT,
    -- number of deliveries or rows that it would change, by a dry run or the plan before; empty: unknown
    matched BIGINT,
    -- of a dry run: its plan; of other commands: the number skipped for each reason
    sample JSON,
    -- deliveries that could not be changed
    failed BIGINT DEFAULT 0 NOT NULL,
    -- last delivery that could not be changed, with its error
    error TEXT,
    -- highest seq when it was asked; of a readmit, highest rejected_request.id; later rows are not included
    until_seq BIGINT,
    CONSTRAINT ck_relay_command_id CHECK (id > 0 AND id < 4000000000000000000),
    CONSTRAINT ck_relay_command_kind CHECK (kind IN ('replay', 'retry', 'cancel', 'unblock', 'pause', 'resume', 'sweep', 'erase', 'prune', 'readmit', 'stop', 'continue')),
    CONSTRAINT ck_relay_command_state CHECK (state IN ('asked', 'running', 'done', 'failed', 'refused', 'cancelled')),
    CONSTRAINT ck_relay_command_reason_length CHECK (length(reason) <= 2000),
    CONSTRAINT ck_relay_command_reason CHECK (NOT (trim(reason, ' ' || char(9, 10, 13, 37) || '!"#$&''()*+,-./:;<=>?@[\]^_`{|}~…') = '')),
    CONSTRAINT ck_relay_command_asked_by CHECK (trim(asked_by) <> '' AND length(asked_by) <= 2000),
    CONSTRAINT ck_relay_command_selection_is_readable CHECK (selection IS NULL OR CASE WHEN json_valid(selection) THEN json_type(selection) = 'object' ELSE 0 END),
    CONSTRAINT ck_relay_command_asked_at_is_readable CHECK (date(substr(asked_at, 1, 10)) IS substr(asked_at, 1, 10) AND asked_at >= '0001-01-01 00:00:00.000000Z' AND (length(asked_at) = 10 OR substr(asked_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_command_finished_at_is_readable CHECK (date(substr(finished_at, 1, 10)) IS substr(finished_at, 1, 10) AND finished_at >= '0001-01-01 00:00:00.000000Z' AND (length(finished_at) = 10 OR substr(finished_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_relay_command_sample_is_readable CHECK (sample IS NULL OR CASE WHEN json_valid(sample) THEN json_type(sample) = 'object' ELSE 0 END)
);

CREATE INDEX ix_relay_command_open ON relay_command (id) WHERE state IN ('asked', 'running');

CREATE TABLE alert ( -- One row when a problem begins and one when it ends, never a second while it lasts.
    -- number of the alert
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- time of the change
    at TEXT NOT NULL,
    -- delivery_dead, breaker_open, endpoint_retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed, intake_stopped or retention_behind
    kind TEXT NOT NULL,
    -- subject, such as a destination's name
    subject TEXT NOT NULL,
    -- true: it began; false: it recovered
    firing BOOLEAN NOT NULL,
    -- figures and causes
    detail JSON NOT NULL,
    -- time at which a relay wrote it to its log
    told_at TEXT,
    -- earliest time of the next post, while another relay posts it or after a failure
    post_after TEXT,
    -- time of posting to the alerts url; empty when none is configured
    sent_at TEXT,
    -- true: it can't be posted, and is not tried again
    is_unsendable BOOLEAN DEFAULT false NOT NULL,
    -- error of the last post
    error TEXT,
    CONSTRAINT ck_alert_at_is_readable CHECK (date(substr(at, 1, 10)) IS substr(at, 1, 10) AND at >= '0001-01-01 00:00:00.000000Z' AND (length(at) = 10 OR substr(at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_alert_detail_is_readable CHECK (detail IS NULL OR CASE WHEN json_valid(detail) THEN json_type(detail) = 'object' ELSE 0 END),
    CONSTRAINT ck_alert_told_at_is_readable CHECK (date(substr(told_at, 1, 10)) IS substr(told_at, 1, 10) AND told_at >= '0001-01-01 00:00:00.000000Z' AND (length(told_at) = 10 OR substr(told_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_alert_post_after_is_readable CHECK (date(substr(post_after, 1, 10)) IS substr(post_after, 1, 10) AND post_after >= '0001-01-01 00:00:00.000000Z' AND (length(post_after) = 10 OR substr(post_after, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_alert_sent_at_is_readable CHECK (date(substr(sent_at, 1, 10)) IS substr(sent_at, 1, 10) AND sent_at >= '0001-01-01 00:00:00.000000Z' AND (length(sent_at) = 10 OR substr(sent_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_alert_subject ON alert (kind, subject, id);

CREATE INDEX ix_alert_unsent ON alert (at) WHERE sent_at IS NULL;

CREATE INDEX ix_alert_untold ON alert (id) WHERE told_at IS NULL;

CREATE TABLE sweep_watermark ( -- Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.
    -- the source that was swept
    source TEXT NOT NULL,
    -- kind of entity
    entity_type TEXT NOT NULL,
    -- every change up to here has been compared with the inbox; empty: no sweep has finished yet
    compared_until TEXT,
    -- time at which the last sweep ended or failed; database clock
    swept_at TEXT,
    -- missing webhooks found in all
    missed BIGINT DEFAULT 0 NOT NULL,
    -- entities compared by the last sweep that finished
    last_compared BIGINT,
    -- changes among them that no webhook reported
    last_missed BIGINT,
    -- events that it added for these
    last_added BIGINT,
    -- error of the last sweep; empty: it finished
    error TEXT,
    -- while a relay sweeps: end of its lease; database clock
    lease_until TEXT,
    -- while a relay sweeps: relay_node.id of the process
    relay_node TEXT,
    -- command that asked for a sweep now: relay_command.id; empty once it has ended
    command_id BIGINT,
    CONSTRAINT pk_sweep_watermark PRIMARY KEY (source, entity_type),
    CONSTRAINT ck_sweep_watermark_compared_until_is_readable CHECK (date(substr(compared_until, 1, 10)) IS substr(compared_until, 1, 10) AND compared_until >= '0001-01-01 00:00:00.000000Z' AND (length(compared_until) = 10 OR substr(compared_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_sweep_watermark_swept_at_is_readable CHECK (date(substr(swept_at, 1, 10)) IS substr(swept_at, 1, 10) AND swept_at >= '0001-01-01 00:00:00.000000Z' AND (length(swept_at) = 10 OR substr(swept_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*')),
    CONSTRAINT ck_sweep_watermark_lease_until_is_readable CHECK (date(substr(lease_until, 1, 10)) IS substr(lease_until, 1, 10) AND lease_until >= '0001-01-01 00:00:00.000000Z' AND (length(lease_until) = 10 OR substr(lease_until, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE write_probe ( -- One row, written by health checks: a database that can be read but not written is not ready.
    -- always 1
    id INTEGER NOT NULL,
    -- time of the last health check
    probed_at TEXT NOT NULL,
    CONSTRAINT pk_write_probe PRIMARY KEY (id),
    CONSTRAINT ck_write_probe_one_row CHECK (id = 1),
    CONSTRAINT ck_write_probe_probed_at_is_readable CHECK (date(substr(probed_at, 1, 10)) IS substr(probed_at, 1, 10) AND probed_at >= '0001-01-01 00:00:00.000000Z' AND (length(probed_at) = 10 OR substr(probed_at, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE TABLE throughput_minute ( -- Figures of each minute, added up by receivers and relays about every ten seconds. Figures, not facts: a killed process loses its latest ones.
    -- source, route or destination
    kind TEXT NOT NULL,
    -- its name in inbox.toml; (unknown) for all unknown sources together
    name TEXT NOT NULL,
    -- of a source: stored, duplicate, swept (added by a sweep), rejected or unavailable (answered with 503); of a route or destination: a kind of fact, as in delivery_log
    outcome TEXT NOT NULL,
    -- beginning of the minute; database clock
    minute TEXT NOT NULL,
    -- events, requests or facts in this minute
    count BIGINT DEFAULT 0 NOT NULL,
    -- bytes of the bodies that were stored; 0 for routes and destinations
    bytes BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_throughput_minute PRIMARY KEY (kind, name, outcome, minute),
    CONSTRAINT ck_throughput_minute_kind CHECK (kind IN ('source', 'route', 'destination')),
    CONSTRAINT ck_throughput_minute_minute_is_readable CHECK (date(substr(minute, 1, 10)) IS substr(minute, 1, 10) AND minute >= '0001-01-01 00:00:00.000000Z' AND (length(minute) = 10 OR substr(minute, 11) GLOB '[ T][0-2][0-9]:[0-5][0-9]*'))
);

CREATE INDEX ix_throughput_minute_minute ON throughput_minute (minute);

CREATE VIEW delivery AS
SELECT i.seq, r.value AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       coalesce(o.state, l.kind) AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> '$.calls[#-1].status' ELSE l.detail ->> '$.calls[#-1].status' END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CASE WHEN length(l.detail ->> 'by') BETWEEN 1 AND 18 AND l.detail ->> 'by' NOT GLOB '*[^0-9]*' THEN CAST(l.detail ->> 'by' AS bigint) END END AS superseded_by
FROM inbox i JOIN json_each(i.routes) r
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = r.value
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = r.value AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = r.value AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE 1 = 1
UNION ALL
SELECT i.seq, r.route AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       coalesce(o.state, l.kind) AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> '$.calls[#-1].status' ELSE l.detail ->> '$.calls[#-1].status' END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CASE WHEN length(l.detail ->> 'by') BETWEEN 1 AND 18 AND l.detail ->> 'by' NOT GLOB '*[^0-9]*' THEN CAST(l.detail ->> 'by' AS bigint) END END AS superseded_by
FROM inbox i JOIN delivery_log r ON r.seq = i.seq AND r.kind = 'replayed'
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = r.route
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = r.route AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = r.route AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE NOT EXISTS (SELECT 1 FROM json_each(i.routes) a WHERE a.value = r.route) AND NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = r.seq AND f.route = r.route AND f.kind = 'replayed' AND f.id < r.id)
UNION ALL
SELECT i.seq, CAST(NULL AS text) AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       'unrouted' AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> '$.calls[#-1].status' ELSE l.detail ->> '$.calls[#-1].status' END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CASE WHEN length(l.detail ->> 'by') BETWEEN 1 AND 18 AND l.detail ->> 'by' NOT GLOB '*[^0-9]*' THEN CAST(l.detail ->> 'by' AS bigint) END END AS superseded_by
FROM inbox i
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = CAST(NULL AS text)
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = CAST(NULL AS text) AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = CAST(NULL AS text) AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE i.routes = '[]' AND NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.kind = 'replayed');

CREATE VIEW dead_letter AS
SELECT o.seq, o.route, o.lane, o.state, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at,
       i.received_at, o.attempt AS attempts, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
       l.detail ->> '$.calls[#-1].status' AS last_status
FROM (
    SELECT seq, route, lane, state, attempt FROM open_delivery WHERE state = 'dead'
    UNION ALL
    SELECT seq, route, lane, state, attempt FROM open_delivery WHERE state = 'blocked'
) o
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead');

CREATE VIEW backlog AS
SELECT b.route, b.open, b.received, b.waiting, b.ready, b.in_flight, b.blocked, b.dead,
       i.received_at AS oldest_received_at, round((julianday('now') - julianday(i.received_at)) * 86400, 3) AS oldest_age_seconds
FROM (
    SELECT route, count(*) AS open,
           count(CASE WHEN state = 'received' THEN 1 END) AS received,
           count(CASE WHEN state = 'waiting' THEN 1 END) AS waiting,
           count(CASE WHEN state = 'ready' THEN 1 END) AS ready,
           count(CASE WHEN state = 'in_flight' THEN 1 END) AS in_flight,
           count(CASE WHEN state = 'blocked' THEN 1 END) AS blocked,
           count(CASE WHEN state = 'dead' THEN 1 END) AS dead,
           min(CASE WHEN state <> 'dead' THEN seq END) AS oldest_seq
    FROM open_delivery
    GROUP BY route
) b
LEFT JOIN inbox i ON i.seq = b.oldest_seq;

CREATE VIEW route_gate AS
SELECT DISTINCT r.key AS route, g.value ->> '$[0]' AS kind, g.value ->> '$[1]' AS name
FROM relay_node n
JOIN json_each(n.routes) r
JOIN json_each(CASE r.type WHEN 'array' THEN r.value ELSE '[]' END) g ON g.type = 'array'
WHERE n.routes IS NOT NULL AND n.stopped_at IS NULL AND n.heartbeat_at >= strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -15)) || '000Z';

CREATE VIEW source_health AS
SELECT known.source, (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome = 'stored' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome = 'duplicate') m) AS last_arrival_at,
       (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('stored', 'swept') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS events_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('stored', 'swept') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS events_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('duplicate') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS duplicates_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('duplicate') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS duplicates_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('rejected') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS rejected_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('rejected') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS rejected_day,
       coalesce((
           SELECT a.firing FROM alert a WHERE a.kind = 'source_silent' AND a.subject = known.source ORDER BY a.id DESC LIMIT 1
       ), false) AS is_silent,
       (SELECT g.paused_at FROM gate g WHERE g.kind = 'source' AND g.name = known.source) AS paused_at
FROM (
    SELECT name AS source FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'source'
            UNION ALL
            SELECT (SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'source' AND t.name > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) counted
    UNION
    SELECT name FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.source) FROM inbox t WHERE 1 = 1
            UNION ALL
            SELECT (SELECT min(t.source) FROM inbox t WHERE 1 = 1 AND t.source > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) stored
) known;

CREATE VIEW destination_health AS
SELECT h.kind, h.name,
       CASE WHEN h.paused_at IS NOT NULL THEN 'paused'
            WHEN h.breaker <> 'closed' THEN h.breaker
            WHEN h.held_until IS NOT NULL THEN 'held'
            WHEN EXISTS (
                SELECT 1 FROM (SELECT failure.* FROM route_failure failure WHERE (SELECT o.route FROM open_delivery o WHERE o.state = 'ready' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'in_flight' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'blocked' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'dead' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route) r
                WHERE h.kind = 'route' AND r.route = h.name OR r.kind = h.kind AND r.name = h.name) THEN 'failing'
            ELSE 'ok' END AS health,
       h.delivered_hour, h.delivered_day, h.failed_hour, h.failed_day, h.dead_hour, h.dead_day,
       h.last_success_at, h.last_failure_at, h.paused_at, h.breaker, h.breaker_until, h.breaker_cause,
       h.held_until, h.hold_reason
FROM (
    SELECT subject.kind, subject.name,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('delivered', 'unchanged') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS delivered_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('delivered', 'unchanged') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS delivered_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('attempt_failed', 'abandoned') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS failed_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('attempt_failed', 'abandoned') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS failed_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('dead') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -3600)) || '000Z') AS dead_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('dead') AND t.minute > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -86400)) || '000Z') AS dead_day,
           (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'delivered' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'unchanged' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'skipped') m) AS last_success_at,
           (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'attempt_failed' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'abandoned' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'dead') m) AS last_failure_at,
           g.paused_at, coalesce(g.breaker, 'closed') AS breaker, g.breaker_until, g.breaker_cause,
           CASE WHEN g.held_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z' THEN g.held_until END AS held_until,
           CASE WHEN g.held_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z' THEN g.hold_reason END AS hold_reason
    FROM (
    SELECT g.kind, g.name FROM gate g WHERE g.kind IN ('route', 'destination', 'api')
    UNION SELECT failure.kind, failure.name FROM route_failure failure
    UNION SELECT 'route', failure.route FROM route_failure failure
    UNION
    SELECT 'route' AS kind, name FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'route'
            UNION ALL
            SELECT (SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'route' AND t.name > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) counted_route
    UNION
    SELECT 'destination' AS kind, name FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'destination'
            UNION ALL
            SELECT (SELECT min(t.name) FROM throughput_minute t WHERE t.kind = 'destination' AND t.name > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) counted_destination
    ) subject
    LEFT JOIN gate g ON g.kind = subject.kind AND g.name = subject.name
) h;

CREATE VIEW stuck AS
SELECT b.finding, b.seq, b.route, b.lane, b.state, b.for_seconds, b.why, b.number FROM (
SELECT 'no_relay' AS finding, CAST(NULL AS bigint) AS seq, CAST(NULL AS text) AS route, CAST(NULL AS text) AS lane,
       'gone' AS state, CAST(NULL AS float8) AS for_seconds, 'no relay has sent a heartbeat for 15 s' AS why,
       CAST(NULL AS bigint) AS number
WHERE NOT EXISTS (
    SELECT 1 FROM relay_node n WHERE n.stopped_at IS NULL AND n.heartbeat_at >= strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -15)) || '000Z')
UNION ALL
SELECT 'crash_loop' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'gone' AS state, NULL AS for_seconds,
       'host ' || n.host || ': ' || count(*) || ' relays died soon after they had started' AS why, NULL AS number
FROM relay_node n
WHERE n.stopped_at IS NULL AND round((julianday('now') - julianday(n.heartbeat_at)) * 86400, 3) > 15 AND round((julianday('now') - julianday(n.started_at)) * 86400, 3) < 600
GROUP BY n.host
HAVING count(*) >= 3
UNION ALL
SELECT 'step_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'failing' AS state, NULL AS for_seconds,
       'relay ' || n.host || ' pid ' || n.pid || ': step ' || step.key || ' fails: ' || step.value AS why, NULL AS number
FROM relay_node n JOIN json_each(n.failing) AS step
WHERE n.failing IS NOT NULL AND n.stopped_at IS NULL AND round((julianday('now') - julianday(n.heartbeat_at)) * 86400, 3) <= 15
UNION ALL
SELECT 'failing' AS finding, r.seq, r.route, NULL AS lane, 'failing' AS state, round((julianday('now') - julianday(r.began_at)) * 86400, 3) AS for_seconds,
       CASE r.failures WHEN 1 THEN 'the last attempt failed' ELSE 'the last ' || r.failures || ' attempts failed' END
       || coalesce(': ' || (
           SELECT l.detail ->> 'error' FROM delivery_log l
           WHERE l.seq = r.seq AND l.route = r.route AND l.kind IN ('attempt_failed', 'dead')
           ORDER BY l.id DESC LIMIT 1), '') AS why,
       r.failures AS number
FROM (SELECT failure.* FROM route_failure failure WHERE (SELECT o.route FROM open_delivery o WHERE o.state = 'ready' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'in_flight' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'blocked' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route
       OR (SELECT o.route FROM open_delivery o WHERE o.state = 'dead' AND o.route >= failure.route ORDER BY o.route LIMIT 1) = failure.route) r
WHERE NOT (EXISTS (SELECT 1 FROM route_gate) AND NOT EXISTS (SELECT 1 FROM route_gate k WHERE k.route = r.route))
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = r.route AND g.paused_at IS NOT NULL)
UNION ALL
SELECT 'config_differs' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'running' AS state,
       round((julianday('now') - julianday(max(c.at))) * 86400, 3) AS for_seconds,
       'relays ' || min(c.relay) || ' and ' || max(c.relay) || ' run with different routes or destinations' AS why, NULL AS number
FROM (
    SELECT min(n.configured_at) AS at, min(n.host || ' pid ' || n.pid || ' (since ' || substr(n.configured_at, 1, 19) || 'Z' || ')') AS relay
    FROM relay_node n
    WHERE n.config_hash IS NOT NULL AND n.stopped_at IS NULL AND round((julianday('now') - julianday(n.heartbeat_at)) * 86400, 3) <= 15
    GROUP BY n.config_hash) c
HAVING count(*) > 1 AND max(c.at) < strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z'
UNION ALL
SELECT 'unordered' AS finding, o.seq, o.route, o.lane, o.state, round((julianday('now') - julianday(i.received_at)) * 86400, 3) AS for_seconds,
       'no relay has ordered it, and nothing moves' AS why, NULL AS number
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT 1000) o JOIN inbox i ON i.seq = o.seq
WHERE i.received_at < strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z' AND NOT EXISTS (SELECT 1 FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z')
UNION ALL
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, round((julianday('now') - julianday(o.due_at)) * 86400, 3) AS for_seconds,
       CASE WHEN EXISTS (SELECT 1 FROM route_gate) AND NOT EXISTS (SELECT 1 FROM route_gate k WHERE k.route = o.route)
            THEN 'due, and no running relay knows its route: relay status says how to go on'
            ELSE 'due, and nothing moves on its route' END AS why,
       NULL AS number
FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.route) FROM open_delivery t WHERE t.state = 'ready'
            UNION ALL
            SELECT (SELECT min(t.route) FROM open_delivery t WHERE t.state = 'ready' AND t.route > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) r CROSS JOIN open_delivery o ON o.rowid IN (SELECT o.rowid FROM open_delivery o WHERE o.route = r.name AND o.state = 'ready' AND o.due_at < strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z' ORDER BY o.due_at, o.seq LIMIT 1000) JOIN inbox i ON i.seq = o.seq
WHERE r.name NOT IN (SELECT newest.route FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z'
    UNION ALL SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z')
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = o.route AND (g.paused_at IS NOT NULL OR g.breaker <> 'closed' OR g.held_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z' OR g.rate_used_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z'))
  AND o.route NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'route' AND g.paused_at IS NOT NULL) AND i.source NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'source' AND g.paused_at IS NOT NULL)
  AND coalesce(replace(replace(i.source, '\', '\\'), '|', '\|') || '|' || replace(replace(i.entity_type, '\', '\\'), '|', '\|') || '|' || replace(replace(i.entity_id, '\', '\\'), '|', '\|'), '') NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'entity' AND g.paused_at IS NOT NULL)
UNION ALL
SELECT 'stuck' AS finding, r.seq, r.route, r.lane, r.state, round((julianday('now') - julianday(r.lease_until)) * 86400, 3),
       'its lease ran out, and no relay has rescued it', NULL
FROM open_delivery r
WHERE r.state = 'in_flight' AND r.lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z'
  AND r.route NOT IN (SELECT newest.route FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', -60)) || '000Z'
    UNION ALL SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', 0)) || '000Z')
UNION ALL
SELECT 'blocked' AS finding, o.seq, o.route, o.lane, o.state, round((julianday('now') - julianday(l.at)) * 86400, 3) AS for_seconds,
       'it is dead and blocks its lane: relay replay, unblock or cancel' AS why,
       (SELECT count(*) FROM (
           SELECT 1 FROM open_delivery w WHERE w.route = o.route AND w.lane = o.lane AND w.state = 'waiting' LIMIT 1000
       ) n) AS number
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'blocked' LIMIT 1000) o
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
UNION ALL
SELECT 'command' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, round((julianday('now') - julianday(c.asked_at)) * 86400, 3) AS for_seconds,
       'command ' || c.id || ' (' || c.kind || '): ' || 'asked a minute ago, and no relay has taken it up' AS why, NULL AS number
FROM relay_command c
WHERE c.state = 'asked' AND round((julianday('now') - julianday(c.asked_at)) * 86400, 3) > 60
UNION ALL
SELECT 'command_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, round((julianday('now') - julianday(c.asked_at)) * 86400, 3) AS for_seconds,
       'command ' || c.id || ' (' || c.kind || '): ' || CASE WHEN c.state IN ('failed', 'refused') THEN c.state || ': ' || coalesce(c.answer, '')
                       ELSE c.failed || ' could not be changed, such as ' || coalesce(c.error, '') END AS why, NULL AS number
FROM (
    SELECT id, kind, state, asked_at, finished_at, failed, answer, error FROM relay_command WHERE NOT dry_run
    ORDER BY id DESC
    LIMIT 1000) c
WHERE (c.state IN ('failed', 'refused') OR c.failed > 0)
  AND (c.finished_at IS NULL OR round((julianday('now') - julianday(c.finished_at)) * 86400, 3) < 3600)
) b;

CREATE VIEW event AS
SELECT i.seq, i.source, i.dedup_key, i.entity_type, i.entity_id, i.event_type, i.action, i.event_id, i.occurred_at, i.received_at, i.routes, i.content_type, i.body_bytes, i.body_is_text, i.body_sha256, i.traceparent, i.erased_at, p.headers,
       CASE WHEN p.seq IS NULL THEN NULL WHEN i.body_is_text THEN CAST(p.body AS text) ELSE '\x' || lower(hex(p.body)) END AS body,
       p.seq IS NULL AS is_pruned, i.erased_at IS NOT NULL AS is_erased
FROM inbox i LEFT JOIN inbox_payload p ON p.seq = i.seq;

CREATE VIEW entity_timeline AS
SELECT i.source, i.entity_type, i.entity_id, i.received_at AS at, 'arrived' AS what, i.seq, CAST(NULL AS text) AS route,
       i.event_type || coalesce(', for ' || (SELECT group_concat(r.value, ', ') FROM json_each(i.routes) r), ', for no route') AS summary, CAST(0 AS bigint) AS fact_id
FROM inbox i
UNION ALL
SELECT i.source, i.entity_type, i.entity_id, d.received_at, 'duplicate', i.seq, NULL,
       d.times || CASE WHEN d.times = 1 THEN ' request' ELSE ' requests' END
           || CASE WHEN d.body IS NOT NULL THEN ' with another body' ELSE '' END
           || coalesce(': not judged: ' || d.error, ''), 0
FROM inbox i CROSS JOIN duplicate_request d
WHERE d.seq = i.seq
UNION ALL
SELECT i.source, i.entity_type, i.entity_id, f.at, f.kind, i.seq, f.route,
       coalesce(f.detail ->> 'error', (f.detail ->> 'who') || ': ' || (f.detail ->> 'why'), f.detail ->> 'why',
                f.detail ->> 'did', f.detail ->> 'because', ''), f.id
FROM inbox i CROSS JOIN delivery_log f
WHERE f.seq = i.seq;

CREATE TRIGGER inbox_refuses_update BEFORE UPDATE ON inbox
WHEN NOT (NEW.seq IS OLD.seq AND NEW.source IS OLD.source AND NEW.dedup_key IS OLD.dedup_key AND NEW.entity_type IS OLD.entity_type AND NEW.event_type IS OLD.event_type AND NEW.action IS OLD.action AND NEW.occurred_at IS OLD.occurred_at AND NEW.received_at IS OLD.received_at AND NEW.routes IS OLD.routes AND NEW.content_type IS OLD.content_type AND NEW.body_bytes IS OLD.body_bytes AND NEW.body_is_text IS OLD.body_is_text AND NEW.body_sha256 IS OLD.body_sha256
    AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
    AND (NEW.event_id IS NULL OR NEW.event_id IS OLD.event_id)
    AND OLD.entity_id IS NOT NULL AND coalesce(NEW.entity_id, '') GLOB 'erased:' || '[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]'
    AND NOT EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq))
BEGIN
    SELECT RAISE(ABORT, 'inbox is append-only: only an erasure changes an event, and only to a pseudonym without texts of the person');
END;

CREATE TRIGGER inbox_refuses_delete BEFORE DELETE ON inbox
WHEN OLD.received_at >= strftime('%Y-%m-%d %H:%M:%f', 'now', '-7 days') OR EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'inbox is append-only: only events older than 7 days with nothing open can be deleted');
END;

CREATE TRIGGER inbox_deletes_payload AFTER DELETE ON inbox
BEGIN
    DELETE FROM inbox_payload WHERE seq = OLD.seq;
END;

CREATE TRIGGER inbox_payload_deletes_edited AFTER DELETE ON inbox_payload
BEGIN
    DELETE FROM edited_body WHERE seq = OLD.seq;
END;

CREATE TRIGGER edited_body_refuses_insert BEFORE INSERT ON edited_body
WHEN NOT EXISTS (SELECT 1 FROM inbox_payload p WHERE p.seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'edited_body: the event has no payload that could be edited');
END;

CREATE TRIGGER edited_body_refuses_update BEFORE UPDATE ON edited_body
BEGIN
    SELECT RAISE(ABORT, 'edited_body is append-only: a row goes with the payload of its event');
END;

CREATE TRIGGER edited_body_refuses_delete BEFORE DELETE ON edited_body
WHEN EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'edited_body is append-only: a row goes with the payload of its event');
END;

CREATE TRIGGER inbox_payload_refuses_update BEFORE UPDATE ON inbox_payload
BEGIN
    SELECT RAISE(ABORT, 'inbox_payload is append-only: only payloads of events with nothing open can be deleted');
END;

CREATE TRIGGER inbox_payload_refuses_delete BEFORE DELETE ON inbox_payload
WHEN EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'inbox_payload is append-only: only payloads of events with nothing open can be deleted');
END;

CREATE TRIGGER delivery_log_refuses_update BEFORE UPDATE ON delivery_log
WHEN NOT (NEW.id IS OLD.id AND NEW.at IS OLD.at AND NEW.seq IS OLD.seq AND NEW.route IS OLD.route AND NEW.kind IS OLD.kind AND NEW.state IS OLD.state AND NEW.attempt IS OLD.attempt AND NEW.run IS OLD.run AND NEW.crashes IS OLD.crashes AND NEW.relay_node IS OLD.relay_node
    AND (EXISTS (SELECT 1 FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
       AND NEW.detail IS (SELECT json_group_object(d.key, CASE WHEN d.key IN ('error', 'why') THEN 'erased' ELSE json(OLD.detail -> d.fullkey) END) FROM json_each(OLD.detail) d WHERE d.key IN ('attempt', 'because', 'blocks_lane', 'by', 'cause', 'command', 'counted', 'crashes', 'did', 'due_at', 'duplicate', 'edited_body', 'error_class', 'fetch_began_at', 'lane', 'last_modified', 'late', 'of', 'relay_node', 'stale_suspected', 'was_due_at', 'who', 'error', 'why')) OR OLD.kind IN ('attempt_failed', 'dead') AND NEW.detail = json_remove(OLD.detail, '$.calls')
       AND NOT EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq AND o.route = OLD.route)))
BEGIN
    SELECT RAISE(ABORT, 'delivery_log is append-only: only the erasure of its event empties a fact, and only retention removes the calls of ended attempts');
END;

CREATE TRIGGER delivery_log_refuses_delete BEFORE DELETE ON delivery_log
WHEN EXISTS (SELECT 1 FROM inbox i WHERE i.seq = OLD.seq)
    AND (OLD.kind NOT IN ('attempt_failed', 'abandoned')
         OR OLD.at >= strftime('%Y-%m-%d %H:%M:%f', 'now', '-7 days')
         OR EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq AND o.route = OLD.route))
BEGIN
    SELECT RAISE(ABORT, 'delivery_log is append-only: only old attempts of ended deliveries can be deleted');
END;

CREATE TRIGGER relay_command_is_bounded AFTER INSERT ON relay_command
WHEN NEW.state IN ('asked', 'running') AND NEW.until_seq IS NULL
BEGIN
    UPDATE relay_command SET until_seq = CASE NEW.kind WHEN 'readmit' THEN (SELECT coalesce(max(id), 0) FROM rejected_request)
    ELSE (SELECT coalesce(max(seq), 0) FROM inbox) END WHERE id = NEW.id;
END;

CREATE TRIGGER relay_command_refuses_update BEFORE UPDATE ON relay_command
BEGIN
    SELECT RAISE(ABORT, 'a command stays as it was asked: cancel it with UPDATE relay_command SET state = ''cancelled'', and insert another one') WHERE NEW.id IS NOT OLD.id OR NEW.kind IS NOT OLD.kind OR NEW.asked_by IS NOT OLD.asked_by OR NEW.asked_at IS NOT OLD.asked_at OR NEW.dry_run IS NOT OLD.dry_run OR NEW.reason IS NOT OLD.reason OR NEW.selection IS NOT OLD.selection AND (OLD.state IN ('asked', 'running') OR NEW.state IN ('asked', 'running') OR NOT coalesce(substr(NEW.selection ->> 'entity_id', 1, 7), '') = 'erased:');
    SELECT RAISE(ABORT, 'a command that has ended stays as it is: insert another one') WHERE NOT (OLD.state IN ('asked', 'running')) AND NEW.state <> OLD.state AND NOT (OLD.state = 'cancelled' AND NEW.state = 'running');
    SELECT RAISE(ABORT, 'only a relay ends a command, and relay continue --command lets a stopped one go on: stop it with UPDATE relay_command SET state = ''cancelled''') WHERE NEW.state NOT IN (OLD.state, 'cancelled') AND (NEW.finished_at IS NULL) <> (NEW.state IN ('asked', 'running'));
END;

CREATE TRIGGER relay_command_is_cancelled AFTER UPDATE OF state ON relay_command
WHEN OLD.state IN ('asked', 'running') AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL
BEGIN
    UPDATE relay_command SET finished_at = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z',
        answer = coalesce(answer, 'cancelled by hand')
    WHERE id = NEW.id;
END;

CREATE TRIGGER relay_command_refuses_delete BEFORE DELETE ON relay_command
WHEN OLD.state IN ('asked', 'running')
BEGIN
    SELECT RAISE(ABORT, 'an open command can''t be deleted: cancel it first with UPDATE relay_command SET state = ''cancelled''');
END;

INSERT INTO order_lock (id) VALUES (1);

INSERT INTO payload_lock (id) VALUES (1);

INSERT INTO pruner (id) VALUES (1);

INSERT INTO write_probe (id, probed_at) VALUES (1, '2000-01-01 00:00:00.000000Z');
