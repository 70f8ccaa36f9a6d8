CREATE TABLE inbox (
    seq BIGSERIAL NOT NULL,
    source TEXT NOT NULL,
    dedup_key TEXT NOT NULL,
    entity_type TEXT,
    entity_id TEXT,
    event_type TEXT NOT NULL,
    action TEXT NOT NULL,
    event_id TEXT,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    routes TEXT[] NOT NULL,
    content_type TEXT NOT NULL,
    body_bytes INTEGER NOT NULL,
    body_is_text BOOLEAN DEFAULT false NOT NULL,
    body_sha256 BYTEA NOT NULL,
    traceparent TEXT,
    erased_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_inbox PRIMARY KEY (seq),
    CONSTRAINT uq_inbox_source_dedup_key UNIQUE (source, dedup_key),
    CONSTRAINT ck_inbox_action CHECK (action IN ('create', 'update', 'delete', 'other')),
    CONSTRAINT ck_inbox_occurred_at_is_readable CHECK (occurred_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_inbox_received_at_is_readable CHECK (received_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_inbox_routes_is_readable CHECK (array_position(routes, NULL) IS NULL),
    CONSTRAINT ck_inbox_erased_at_is_readable CHECK (erased_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX ix_inbox_entity ON inbox (source, entity_type, entity_id, seq);

CREATE INDEX ix_inbox_event_id ON inbox (event_id, seq) WHERE event_id IS NOT NULL;

COMMENT ON TABLE inbox IS 'One row per accepted webhook, immutable. Written by the receiver before it answers 200.';

COMMENT ON COLUMN inbox.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN inbox.source IS 'sender: a name of [sources] in inbox.toml';

COMMENT ON COLUMN inbox.dedup_key IS 'key of the event: another request of the source with this key is a duplicate; has a digest in place of an entity''s id';

COMMENT ON COLUMN inbox.entity_type IS 'type of the entity that changed, such as USER; empty when the event has no entity';

COMMENT ON COLUMN inbox.entity_id IS 'id of the entity that changed, as the source gives it; a pseudonym after erasure';

COMMENT ON COLUMN inbox.event_type IS 'event type, verbatim from the sender';

COMMENT ON COLUMN inbox.action IS 'effect on the entity: create, update, delete or other';

COMMENT ON COLUMN inbox.event_id IS 'the sender''s own id of the event, if any';

COMMENT ON COLUMN inbox.occurred_at IS 'the event''s own time, to the microsecond; its arrival where it has no plausible one';

COMMENT ON COLUMN inbox.received_at IS 'time at which the receiver had read the request';

COMMENT ON COLUMN inbox.routes IS 'names of the routes that matched when it arrived; empty: unrouted';

COMMENT ON COLUMN inbox.content_type IS 'Content-Type of the body';

COMMENT ON COLUMN inbox.body_bytes IS 'size of the body in bytes; stays after its payload is gone';

COMMENT ON COLUMN inbox.body_is_text IS 'true: the body is UTF-8 without NUL; the view event has it as text';

COMMENT ON COLUMN inbox.body_sha256 IS 'SHA-256 of the body; stays after its payload is gone';

COMMENT ON COLUMN inbox.traceparent IS 'W3C trace context of the request: of the receiver''s span where that is sampled, else the sender''s; empty after erasure';

COMMENT ON COLUMN inbox.erased_at IS 'time at which the entity was erased: entity_id is a pseudonym, and nothing else names it';

CREATE TABLE inbox_payload (
    seq BIGINT NOT NULL,
    headers JSONB NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT pk_inbox_payload PRIMARY KEY (seq),
    CONSTRAINT ck_inbox_payload_headers_is_readable CHECK (jsonb_typeof(headers) = 'object')
)
 PARTITION BY RANGE (seq);

COMMENT ON TABLE inbox_payload IS 'Headers and body of each event, until retention or erasure deletes them. The views and commands join it by seq.';

COMMENT ON COLUMN inbox_payload.seq IS 'the event: inbox.seq';

COMMENT ON COLUMN inbox_payload.headers IS 'allow-listed request headers';

COMMENT ON COLUMN inbox_payload.body IS 'body of the request, byte for byte';

CREATE TABLE edited_body (
    id BIGSERIAL NOT NULL,
    seq BIGINT NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT pk_edited_body PRIMARY KEY (id)
);

CREATE INDEX ix_edited_body_seq ON edited_body (seq);

COMMENT ON TABLE edited_body IS 'Edited bodies, append-only. The body of the event stays as it is, and both are deleted together.';

COMMENT ON COLUMN edited_body.id IS 'number of the edited body, as in the selection of its replay and in the detail of its fact `replayed`';

COMMENT ON COLUMN edited_body.seq IS 'the event: inbox.seq';

COMMENT ON COLUMN edited_body.body IS 'body that an operator wrote; a replay that names it delivers it in place of the event''s';

CREATE TABLE duplicate_request (
    id BIGSERIAL NOT NULL,
    seq BIGINT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    body_sha256 BYTEA NOT NULL,
    body BYTEA,
    handled_at TIMESTAMP WITH TIME ZONE,
    times BIGINT DEFAULT 1 NOT NULL,
    last_received_at TIMESTAMP WITH TIME ZONE,
    error TEXT,
    CONSTRAINT pk_duplicate_request PRIMARY KEY (id),
    CONSTRAINT ck_duplicate_request_received_at_is_readable CHECK (received_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_duplicate_request_handled_at_is_readable CHECK (handled_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_duplicate_request_last_received_at_is_readable CHECK (last_received_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX ix_duplicate_request_open ON duplicate_request (seq) WHERE handled_at IS NULL;

CREATE INDEX ix_duplicate_request_seq ON duplicate_request (seq);

COMMENT ON TABLE duplicate_request IS 'A duplicate: a request whose key is already stored. The answer was 200 with the stored seq. sum(times) counts them.';

COMMENT ON COLUMN duplicate_request.id IS 'number of the duplicate';

COMMENT ON COLUMN duplicate_request.seq IS 'the event that it duplicates: inbox.seq';

COMMENT ON COLUMN duplicate_request.received_at IS 'time of its arrival';

COMMENT ON COLUMN duplicate_request.body_sha256 IS 'SHA-256 of its body';

COMMENT ON COLUMN duplicate_request.body IS 'its body, only when it differs from the event''s';

COMMENT ON COLUMN duplicate_request.handled_at IS 'time at which a relay judged it; empty: not judged yet';

COMMENT ON COLUMN duplicate_request.times IS 'number of requests in this row: after the first 20 of an event, further ones are only counted';

COMMENT ON COLUMN duplicate_request.last_received_at IS 'if times is more than 1: time of the last arrival';

COMMENT ON COLUMN duplicate_request.error IS 'reason why it could not be judged; clear it to have it judged again';

CREATE TABLE rejected_request (
    id BIGSERIAL NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    source TEXT NOT NULL,
    status INTEGER NOT NULL,
    cause TEXT NOT NULL,
    reason TEXT NOT NULL,
    field TEXT,
    remote_address TEXT,
    headers JSONB,
    body_sha256 BYTEA NOT NULL,
    body BYTEA,
    readmitted_at TIMESTAMP WITH TIME ZONE,
    readmitted_seq BIGINT,
    readmitted_by TEXT,
    readmit_reason TEXT,
    CONSTRAINT pk_rejected_request PRIMARY KEY (id),
    CONSTRAINT ck_rejected_request_received_at_is_readable CHECK (received_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_rejected_request_headers_is_readable CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT ck_rejected_request_readmitted_at_is_readable CHECK (readmitted_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX ix_rejected_request_whole ON rejected_request (id) WHERE body IS NOT NULL;

COMMENT ON TABLE rejected_request IS 'A rejected request. Each receiver process stores at most 10 a second; beyond that only metrics count them.';

COMMENT ON COLUMN rejected_request.id IS 'number of the rejected request';

COMMENT ON COLUMN rejected_request.received_at IS 'time of its arrival';

COMMENT ON COLUMN rejected_request.source IS 'source in the URL, known or unknown';

COMMENT ON COLUMN rejected_request.status IS 'HTTP status of the answer';

COMMENT ON COLUMN rejected_request.cause IS 'cause in one word, as in the metrics';

COMMENT ON COLUMN rejected_request.reason IS 'reason in one sentence';

COMMENT ON COLUMN rejected_request.field IS 'invalid field, if any';

COMMENT ON COLUMN rejected_request.remote_address IS 'address of the client';

COMMENT ON COLUMN rejected_request.headers IS 'allow-listed request headers, only of an authenticated sender';

COMMENT ON COLUMN rejected_request.body_sha256 IS 'SHA-256 of the body';

COMMENT ON COLUMN rejected_request.body IS 'the body, only of an authenticated sender, so that it can be readmitted';

COMMENT ON COLUMN rejected_request.readmitted_at IS 'time at which an operator readmitted it; empty: not readmitted';

COMMENT ON COLUMN rejected_request.readmitted_seq IS 'the event that it became or duplicates: inbox.seq; the first, when its body has several';

COMMENT ON COLUMN rejected_request.readmitted_by IS 'operator who readmitted it';

COMMENT ON COLUMN rejected_request.readmit_reason IS 'reason for readmitting it';

CREATE TABLE open_delivery (
    seq BIGINT NOT NULL,
    route TEXT NOT NULL,
    lane TEXT NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    run INTEGER DEFAULT 0 NOT NULL,
    crashes INTEGER DEFAULT 0 NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE,
    lease_until TIMESTAMP WITH TIME ZONE,
    lease_token BIGINT,
    relay_node TEXT,
    CONSTRAINT pk_open_delivery PRIMARY KEY (seq, route),
    CONSTRAINT ck_open_delivery_state CHECK (state IN ('received', 'waiting', 'ready', 'in_flight', 'blocked', 'dead')),
    CONSTRAINT ck_open_delivery_due_when_ready CHECK ((state = 'ready') = (due_at IS NOT NULL)),
    CONSTRAINT ck_open_delivery_due_at CHECK (due_at BETWEEN '1970-01-01 00:00:00.000000Z' AND '9000-01-01 00:00:00.000000Z'),
    CONSTRAINT ck_open_delivery_leased_when_in_flight CHECK ((state = 'in_flight') = (lease_until IS NOT NULL AND lease_token IS NOT NULL AND relay_node IS NOT NULL)),
    CONSTRAINT ck_open_delivery_occurred_at_is_readable CHECK (occurred_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_open_delivery_due_at_is_readable CHECK (due_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_open_delivery_lease_until_is_readable CHECK (lease_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX ix_open_delivery_blocked ON open_delivery (route, lane) WHERE state = 'blocked';

CREATE INDEX ix_open_delivery_dead ON open_delivery (route, lane, occurred_at, seq) WHERE state = 'dead';

CREATE INDEX ix_open_delivery_given_up ON open_delivery (seq, route) WHERE state IN ('dead', 'blocked');

CREATE INDEX ix_open_delivery_in_flight ON open_delivery (seq, route) WHERE state = 'in_flight';

CREATE INDEX ix_open_delivery_ready ON open_delivery (route, due_at, seq) WHERE state = 'ready';

CREATE INDEX ix_open_delivery_received ON open_delivery (seq) WHERE state = 'received';

CREATE INDEX ix_open_delivery_suspect ON open_delivery (due_at, seq) WHERE state = 'ready' AND crashes >= 2;

CREATE INDEX ix_open_delivery_waiting ON open_delivery (route, lane, occurred_at, seq) WHERE state = 'waiting';

CREATE UNIQUE INDEX ux_open_delivery_head ON open_delivery (route, lane) WHERE state IN ('ready', 'in_flight', 'blocked');

COMMENT ON TABLE open_delivery IS 'Every open delivery. A projection of delivery_log: relay verify compares the two, relay rebuild repairs it.';

COMMENT ON COLUMN open_delivery.seq IS 'the event: inbox.seq';

COMMENT ON COLUMN open_delivery.route IS 'the route it takes: a name of [routes] in inbox.toml';

COMMENT ON COLUMN open_delivery.lane IS 'the unit of order on the route: TYPE|ID of the entity, * or the event itself';

COMMENT ON COLUMN open_delivery.occurred_at IS 'copy of inbox.occurred_at: order in the lane, before seq';

COMMENT ON COLUMN open_delivery.state IS 'received, waiting (behind its head), ready, in_flight, blocked or dead';

COMMENT ON COLUMN open_delivery.attempt IS 'attempts used in this run';

COMMENT ON COLUMN open_delivery.run IS 'number of times it was replayed or re-armed';

COMMENT ON COLUMN open_delivery.crashes IS 'attempts in a row whose lease expired';

COMMENT ON COLUMN open_delivery.due_at IS 'if ready: time of the next attempt; database clock';

COMMENT ON COLUMN open_delivery.lease_until IS 'if in_flight: end of the lease; database clock';

COMMENT ON COLUMN open_delivery.lease_token IS 'if in_flight: fencing token of the claim; a result with another token is discarded';

COMMENT ON COLUMN open_delivery.relay_node IS 'if in_flight: relay_node.id of the process that delivers it';

CREATE TABLE lane (
    route TEXT NOT NULL,
    lane TEXT NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    seq BIGINT NOT NULL,
    fetch_began_at TIMESTAMP WITH TIME ZONE,
    last_modified TIMESTAMP WITH TIME ZONE,
    applied_hash BYTEA,
    CONSTRAINT pk_lane PRIMARY KEY (route, lane),
    CONSTRAINT ck_lane_occurred_at_is_readable CHECK (occurred_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_lane_fetch_began_at_is_readable CHECK (fetch_began_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_lane_last_modified_is_readable CHECK (last_modified BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE lane IS 'Last delivery of each lane. One row per route and lane that ever succeeded; an event''s own lane has none.';

COMMENT ON COLUMN lane.route IS 'the route';

COMMENT ON COLUMN lane.lane IS 'the lane, as in open_delivery';

COMMENT ON COLUMN lane.occurred_at IS 'time of the newest event delivered in this lane';

COMMENT ON COLUMN lane.seq IS 'the newest event delivered in this lane: inbox.seq';

COMMENT ON COLUMN lane.fetch_began_at IS 'time at which that delivery fetched the entity; sync routes only';

COMMENT ON COLUMN lane.last_modified IS 'the source''s own time of the applied state';

COMMENT ON COLUMN lane.applied_hash IS 'SHA-256 of the data sent downstream';

CREATE TABLE delivery_log (
    id BIGSERIAL NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    seq BIGINT NOT NULL,
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    run INTEGER DEFAULT 0 NOT NULL,
    crashes INTEGER DEFAULT 0 NOT NULL,
    relay_node TEXT,
    detail JSONB NOT NULL,
    CONSTRAINT pk_delivery_log PRIMARY KEY (id),
    CONSTRAINT ck_delivery_log_kind CHECK (kind IN ('delivered', 'unchanged', 'superseded', 'skipped', 'cancelled', 'attempt_failed', 'abandoned', 'took_over', 'rescheduled', 'dead', 'replayed', 'rearmed', 'unblocked', 'corrected', 'erased')),
    CONSTRAINT ck_delivery_log_state CHECK (state IN ('received', 'ready', 'blocked', 'dead', 'ended')),
    CONSTRAINT ck_delivery_log_at_is_readable CHECK (at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_delivery_log_detail_is_readable CHECK (jsonb_typeof(detail) = 'object')
)
 WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX ix_delivery_log_at ON delivery_log USING brin (at) WITH (autosummarize = on);

CREATE INDEX ix_delivery_log_attempt ON delivery_log (id) WHERE kind IN ('attempt_failed', 'abandoned', 'dead');

CREATE INDEX ix_delivery_log_delivery ON delivery_log (seq, route, id);

COMMENT ON TABLE delivery_log IS 'Facts about deliveries, append-only. The last fact of a delivery has its state.';

COMMENT ON COLUMN delivery_log.id IS 'number of the fact';

COMMENT ON COLUMN delivery_log.at IS 'time of recording; database clock';

COMMENT ON COLUMN delivery_log.seq IS 'the event: inbox.seq';

COMMENT ON COLUMN delivery_log.route IS 'the route';

COMMENT ON COLUMN delivery_log.kind IS 'kind of fact; explained in docs/reference/states.md';

COMMENT ON COLUMN delivery_log.state IS 'state of the delivery after it; ready and received are open';

COMMENT ON COLUMN delivery_log.attempt IS 'attempts used in this run after it';

COMMENT ON COLUMN delivery_log.run IS 'number of times that it had been replayed or re-armed';

COMMENT ON COLUMN delivery_log.crashes IS 'attempts in a row whose lease had expired';

COMMENT ON COLUMN delivery_log.relay_node IS 'relay_node.id of the process that recorded it; empty for an operator''s command';

COMMENT ON COLUMN delivery_log.detail IS 'calls, statuses, durations, error, next due time, operator and reason';

CREATE TABLE order_lock (
    id INTEGER NOT NULL,
    CONSTRAINT pk_order_lock PRIMARY KEY (id),
    CONSTRAINT ck_order_lock_one_row CHECK (id = 1)
);

COMMENT ON TABLE order_lock IS 'One row, locked by every transaction that may end or create the head of a lane on any route.';

COMMENT ON COLUMN order_lock.id IS 'always 1';

CREATE TABLE route_lock (
    route TEXT NOT NULL,
    CONSTRAINT pk_route_lock PRIMARY KEY (route)
);

COMMENT ON TABLE route_lock IS 'One row for each route, locked by every transaction that ends or creates the head of a lane on it. Added by relays, and never removed. Empty on SQLite.';

COMMENT ON COLUMN route_lock.route IS 'name of the route';

CREATE TABLE route_failure (
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE NOT NULL,
    failures BIGINT DEFAULT 0 NOT NULL,
    seq BIGINT NOT NULL,
    CONSTRAINT pk_route_failure PRIMARY KEY (route),
    CONSTRAINT ck_route_failure_kind CHECK (kind IN ('destination', 'api')),
    CONSTRAINT ck_route_failure_began_at_is_readable CHECK (began_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE route_failure IS 'One row for each route whose last attempt failed. Its next success deletes it.';

COMMENT ON COLUMN route_failure.route IS 'name of the route';

COMMENT ON COLUMN route_failure.kind IS 'endpoint whose call failed last: destination or api';

COMMENT ON COLUMN route_failure.name IS 'its name in inbox.toml';

COMMENT ON COLUMN route_failure.began_at IS 'time of the first failure since the last success; database clock';

COMMENT ON COLUMN route_failure.failures IS 'attempts that failed since then';

COMMENT ON COLUMN route_failure.seq IS 'event of the last one: inbox.seq';

CREATE TABLE payload_lock (
    id INTEGER NOT NULL,
    CONSTRAINT pk_payload_lock PRIMARY KEY (id),
    CONSTRAINT ck_payload_lock_one_row CHECK (id = 1)
);

COMMENT ON TABLE payload_lock IS 'One row. Transactions that open deliveries of stored events share its lock; those that delete payloads or events hold it alone.';

COMMENT ON COLUMN payload_lock.id IS 'always 1';

CREATE TABLE pruner (
    id INTEGER NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    held_by TEXT,
    ran_at TIMESTAMP WITH TIME ZONE,
    clock TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_pruner PRIMARY KEY (id),
    CONSTRAINT ck_pruner_one_row CHECK (id = 1),
    CONSTRAINT ck_pruner_lease_until_is_readable CHECK (lease_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_pruner_ran_at_is_readable CHECK (ran_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_pruner_clock_is_readable CHECK (clock BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE pruner IS 'One row: the relay or person that prunes, and the time from which ages count.';

COMMENT ON COLUMN pruner.id IS 'always 1';

COMMENT ON COLUMN pruner.lease_until IS 'during pruning: end of the lease; database clock';

COMMENT ON COLUMN pruner.held_by IS 'during pruning: relay_node.id of the relay, or the person, host and process';

COMMENT ON COLUMN pruner.ran_at IS 'time at which the last round ended; database clock';

COMMENT ON COLUMN pruner.clock IS 'time from which ages count: the database clock; after a step forward, it catches up a day per hour';

CREATE TABLE pruning (
    kind TEXT NOT NULL,
    position BIGINT DEFAULT 0 NOT NULL,
    lap_began_at TIMESTAMP WITH TIME ZONE,
    pruned_until TIMESTAMP WITH TIME ZONE,
    rows BIGINT DEFAULT 0 NOT NULL,
    behind_seconds BIGINT DEFAULT 0 NOT NULL,
    behind_since TIMESTAMP WITH TIME ZONE,
    ran_at TIMESTAMP WITH TIME ZONE,
    passed_over BIGINT DEFAULT 0 NOT NULL,
    error TEXT,
    CONSTRAINT pk_pruning PRIMARY KEY (kind),
    CONSTRAINT ck_pruning_lap_began_at_is_readable CHECK (lap_began_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_pruning_pruned_until_is_readable CHECK (pruned_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_pruning_behind_since_is_readable CHECK (behind_since BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_pruning_ran_at_is_readable CHECK (ran_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE pruning IS 'Progress of retention: one row for each kind of rows that expires.';

COMMENT ON COLUMN pruning.kind IS 'kind of rows: a key of [retention] in inbox.toml';

COMMENT ON COLUMN pruning.position IS 'number up to which expired rows are gone; rows left below it must stay';

COMMENT ON COLUMN pruning.lap_began_at IS 'time at which the lap last began at the first row; once a day';

COMMENT ON COLUMN pruning.pruned_until IS 'rows older than this have expired';

COMMENT ON COLUMN pruning.rows IS 'rows pruned in all';

COMMENT ON COLUMN pruning.behind_seconds IS 'seconds since the oldest remaining row expired; 0: none is left';

COMMENT ON COLUMN pruning.behind_since IS 'time since which behind_seconds is more than a day';

COMMENT ON COLUMN pruning.ran_at IS 'time of the last batch; database clock';

COMMENT ON COLUMN pruning.passed_over IS 'rows that could not be deleted and were skipped, in the current lap';

COMMENT ON COLUMN pruning.error IS 'error of the last batch; empty: it succeeded';

CREATE TABLE payload_reveal (
    id BIGSERIAL NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    seq BIGINT NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL,
    CONSTRAINT pk_payload_reveal PRIMARY KEY (id),
    CONSTRAINT ck_payload_reveal_who CHECK (trim(who) <> ''),
    CONSTRAINT ck_payload_reveal_reason CHECK (NOT (trim(reason, E' \t\n\r' || chr(37) || '!"#$&''()*+,-./:;<=>?@[\]^_`{|}~…') = '')),
    CONSTRAINT ck_payload_reveal_at_is_readable CHECK (at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX ix_payload_reveal_seq ON payload_reveal (seq);

COMMENT ON TABLE payload_reveal IS 'One row each time the operator''s page shows the headers and body of an event, written before it does.';

COMMENT ON COLUMN payload_reveal.id IS 'number of the reveal';

COMMENT ON COLUMN payload_reveal.at IS 'time of the reveal; database clock';

COMMENT ON COLUMN payload_reveal.seq IS 'the event whose headers and body were shown: inbox.seq';

COMMENT ON COLUMN payload_reveal.who IS 'person or program that saw them, as the operator''s page knows it';

COMMENT ON COLUMN payload_reveal.reason IS 'reason given';

CREATE TABLE relay_node (
    id TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    version TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    heartbeat_at TIMESTAMP WITH TIME ZONE NOT NULL,
    stopped_at TIMESTAMP WITH TIME ZONE,
    routes JSONB,
    config_hash TEXT,
    configured_at TIMESTAMP WITH TIME ZONE,
    failing JSONB,
    CONSTRAINT pk_relay_node PRIMARY KEY (id),
    CONSTRAINT ck_relay_node_started_at_is_readable CHECK (started_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_node_heartbeat_at_is_readable CHECK (heartbeat_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_node_stopped_at_is_readable CHECK (stopped_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_node_routes_is_readable CHECK (jsonb_typeof(routes) = 'object'),
    CONSTRAINT ck_relay_node_configured_at_is_readable CHECK (configured_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_node_failing_is_readable CHECK (jsonb_typeof(failing) = 'object')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX ix_relay_node_started_at ON relay_node (started_at);

COMMENT ON TABLE relay_node IS 'One row per run of a relay process.';

COMMENT ON COLUMN relay_node.id IS 'new at every start of a relay process';

COMMENT ON COLUMN relay_node.host IS 'machine that it runs on';

COMMENT ON COLUMN relay_node.pid IS 'process id on that machine';

COMMENT ON COLUMN relay_node.version IS 'version of Inbox Relay';

COMMENT ON COLUMN relay_node.started_at IS 'time of its start; database clock';

COMMENT ON COLUMN relay_node.heartbeat_at IS 'time of its last heartbeat; database clock';

COMMENT ON COLUMN relay_node.stopped_at IS 'time of a graceful stop; empty while it runs or if it died';

COMMENT ON COLUMN relay_node.routes IS 'routes of its configuration, each with the kinds and names of the gates on its way';

COMMENT ON COLUMN relay_node.config_hash IS 'SHA-256 of the apis, destinations and routes that it runs with';

COMMENT ON COLUMN relay_node.configured_at IS 'time at which it took up that configuration; database clock';

COMMENT ON COLUMN relay_node.failing IS 'steps that fail now, with the errors; empty: none';

CREATE TABLE gate (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_by TEXT,
    pause_reason TEXT,
    breaker TEXT DEFAULT 'closed' NOT NULL,
    breaker_until TIMESTAMP WITH TIME ZONE,
    breaker_cause TEXT,
    open_count INTEGER DEFAULT 0 NOT NULL,
    failures INTEGER DEFAULT 0 NOT NULL,
    calls INTEGER DEFAULT 0 NOT NULL,
    window_began_at TIMESTAMP WITH TIME ZONE,
    rate_used_until TIMESTAMP WITH TIME ZONE,
    held_until TIMESTAMP WITH TIME ZONE,
    hold_reason TEXT,
    CONSTRAINT pk_gate PRIMARY KEY (kind, name),
    CONSTRAINT ck_gate_kind CHECK (kind IN ('source', 'route', 'destination', 'api', 'entity')),
    CONSTRAINT ck_gate_breaker CHECK (breaker IN ('closed', 'open', 'half_open', 'retired')),
    CONSTRAINT ck_gate_paused_at_is_readable CHECK (paused_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_gate_breaker_until_is_readable CHECK (breaker_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_gate_window_began_at_is_readable CHECK (window_began_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_gate_rate_used_until_is_readable CHECK (rate_used_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_gate_held_until_is_readable CHECK (held_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE gate IS 'Gates in front of deliveries: pauses, circuit breakers and rate limits, shared by all relays.';

COMMENT ON COLUMN gate.kind IS 'source, route, destination, api or entity';

COMMENT ON COLUMN gate.name IS 'its name in inbox.toml; SOURCE|TYPE|ID for an entity';

COMMENT ON COLUMN gate.paused_at IS 'time at which an operator paused it; empty: not paused';

COMMENT ON COLUMN gate.paused_by IS 'operator who paused it';

COMMENT ON COLUMN gate.pause_reason IS 'reason for the pause';

COMMENT ON COLUMN gate.breaker IS 'closed, open, half_open or retired';

COMMENT ON COLUMN gate.breaker_until IS 'if open: time of the next probe; database clock';

COMMENT ON COLUMN gate.breaker_cause IS 'cause of its opening';

COMMENT ON COLUMN gate.open_count IS 'number of times it opened in a row; each doubles the open time';

COMMENT ON COLUMN gate.failures IS 'failed calls in the current window';

COMMENT ON COLUMN gate.calls IS 'calls in the current window';

COMMENT ON COLUMN gate.window_began_at IS 'start of the current window';

COMMENT ON COLUMN gate.rate_used_until IS 'rate limit: time until which calls have used it up; no call goes out while it is more than a burst ahead';

COMMENT ON COLUMN gate.held_until IS 'rate hold: time until which the endpoint asked not to be called; database clock';

COMMENT ON COLUMN gate.hold_reason IS 'header that asked for it';

CREATE TABLE relay_command (
    id BIGSERIAL NOT NULL,
    kind TEXT NOT NULL,
    selection JSONB DEFAULT '{}' NOT NULL,
    reason TEXT NOT NULL,
    asked_by TEXT DEFAULT SESSION_USER NOT NULL,
    asked_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    dry_run BOOLEAN DEFAULT false NOT NULL,
    state TEXT DEFAULT 'asked' NOT NULL,
    progress_seq BIGINT,
    affected BIGINT DEFAULT 0 NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    answer TEXT,
    matched BIGINT,
    sample JSONB,
    failed BIGINT DEFAULT 0 NOT NULL,
    error TEXT,
    until_seq BIGINT,
    CONSTRAINT pk_relay_command PRIMARY KEY (id),
    CONSTRAINT ck_relay_command_id CHECK (id > 0 AND id < 4000000000000000000),
    CONSTRAINT ck_relay_command_kind CHECK (kind IN ('replay', 'retry', 'cancel', 'unblock', 'pause', 'resume', 'sweep', 'erase', 'prune', 'readmit', 'stop', 'continue')),
    CONSTRAINT ck_relay_command_state CHECK (state IN ('asked', 'running', 'done', 'failed', 'refused', 'cancelled')),
    CONSTRAINT ck_relay_command_reason_length CHECK (length(reason) <= 2000),
    CONSTRAINT ck_relay_command_reason CHECK (NOT (trim(reason, E' \t\n\r' || chr(37) || '!"#$&''()*+,-./:;<=>?@[\]^_`{|}~…') = '')),
    CONSTRAINT ck_relay_command_asked_by CHECK (trim(asked_by) <> '' AND length(asked_by) <= 2000),
    CONSTRAINT ck_relay_command_selection_is_readable CHECK (jsonb_typeof(selection) = 'object'),
    CONSTRAINT ck_relay_command_asked_at_is_readable CHECK (asked_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_command_finished_at_is_readable CHECK (finished_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_relay_command_sample_is_readable CHECK (jsonb_typeof(sample) = 'object')
);

CREATE INDEX ix_relay_command_open ON relay_command (id) WHERE state IN ('asked', 'running');

COMMENT ON TABLE relay_command IS 'Command of an operator, by SQL or command line; the daemon executes and answers it.';

COMMENT ON COLUMN relay_command.id IS 'number of the command';

COMMENT ON COLUMN relay_command.kind IS 'replay, retry, cancel, unblock, pause, resume, sweep, erase, prune, readmit, stop or continue';

COMMENT ON COLUMN relay_command.selection IS 'its selection, as a JSON object with the keys of its kind';

COMMENT ON COLUMN relay_command.reason IS 'reason given by the operator';

COMMENT ON COLUMN relay_command.asked_by IS 'operator; by default the database role';

COMMENT ON COLUMN relay_command.asked_at IS 'time of the request; database clock';

COMMENT ON COLUMN relay_command.dry_run IS 'true: only answer what it would change';

COMMENT ON COLUMN relay_command.state IS 'asked, running, done, failed, refused or cancelled';

COMMENT ON COLUMN relay_command.progress_seq IS 'progress: everything up to this seq is done';

COMMENT ON COLUMN relay_command.affected IS 'deliveries changed so far; rows, for a command of another kind';

COMMENT ON COLUMN relay_command.finished_at IS 'time of its end';

COMMENT ON COLUMN relay_command.answer IS 'answer of the daemon';

COMMENT ON COLUMN relay_command.matched IS 'number of deliveries or rows that it would change, by a dry run or the plan before; empty: unknown';

COMMENT ON COLUMN relay_command.sample IS 'of a dry run: its plan; of other commands: the number skipped for each reason';

COMMENT ON COLUMN relay_command.failed IS 'deliveries that could not be changed';

COMMENT ON COLUMN relay_command.error IS 'last delivery that could not be changed, with its error';

COMMENT ON COLUMN relay_command.until_seq IS 'highest seq when it was asked; of a readmit, highest rejected_request.id; later rows are not included';

CREATE TABLE alert (
    id BIGSERIAL NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    firing BOOLEAN NOT NULL,
    detail JSONB NOT NULL,
    told_at TIMESTAMP WITH TIME ZONE,
    post_after TIMESTAMP WITH TIME ZONE,
    sent_at TIMESTAMP WITH TIME ZONE,
    is_unsendable BOOLEAN DEFAULT false NOT NULL,
    error TEXT,
    CONSTRAINT pk_alert PRIMARY KEY (id),
    CONSTRAINT ck_alert_at_is_readable CHECK (at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_alert_detail_is_readable CHECK (jsonb_typeof(detail) = 'object'),
    CONSTRAINT ck_alert_told_at_is_readable CHECK (told_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_alert_post_after_is_readable CHECK (post_after BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_alert_sent_at_is_readable CHECK (sent_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
);

CREATE INDEX ix_alert_subject ON alert (kind, subject, id);

CREATE INDEX ix_alert_unsent ON alert (at) WHERE sent_at IS NULL;

CREATE INDEX ix_alert_untold ON alert (id) WHERE told_at IS NULL;

COMMENT ON TABLE alert IS 'One row when a problem begins and one when it ends, never a second while it lasts.';

COMMENT ON COLUMN alert.id IS 'number of the alert';

COMMENT ON COLUMN alert.at IS 'time of the change';

COMMENT ON COLUMN alert.kind IS 'delivery_dead, breaker_open, endpoint_retired, backlog_old, source_silent, webhooks_missed, sweep_failed, step_failed, intake_stopped or retention_behind';

COMMENT ON COLUMN alert.subject IS 'subject, such as a destination''s name';

COMMENT ON COLUMN alert.firing IS 'true: it began; false: it recovered';

COMMENT ON COLUMN alert.detail IS 'figures and causes';

COMMENT ON COLUMN alert.told_at IS 'time at which a relay wrote it to its log';

COMMENT ON COLUMN alert.post_after IS 'earliest time of the next post, while another relay posts it or after a failure';

COMMENT ON COLUMN alert.sent_at IS 'time of posting to the alerts url; empty when none is configured';

COMMENT ON COLUMN alert.is_unsendable IS 'true: it can''t be posted, and is not tried again';

COMMENT ON COLUMN alert.error IS 'error of the last post';

CREATE TABLE sweep_watermark (
    source TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    compared_until TIMESTAMP WITH TIME ZONE,
    swept_at TIMESTAMP WITH TIME ZONE,
    missed BIGINT DEFAULT 0 NOT NULL,
    last_compared BIGINT,
    last_missed BIGINT,
    last_added BIGINT,
    error TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    relay_node TEXT,
    command_id BIGINT,
    CONSTRAINT pk_sweep_watermark PRIMARY KEY (source, entity_type),
    CONSTRAINT ck_sweep_watermark_compared_until_is_readable CHECK (compared_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_sweep_watermark_swept_at_is_readable CHECK (swept_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT ck_sweep_watermark_lease_until_is_readable CHECK (lease_until BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
);

COMMENT ON TABLE sweep_watermark IS 'Watermark of the sweeps of a source, with the result of the last one and the relay that runs one.';

COMMENT ON COLUMN sweep_watermark.source IS 'the source that was swept';

COMMENT ON COLUMN sweep_watermark.entity_type IS 'kind of entity';

COMMENT ON COLUMN sweep_watermark.compared_until IS 'every change up to here has been compared with the inbox; empty: no sweep has finished yet';

COMMENT ON COLUMN sweep_watermark.swept_at IS 'time at which the last sweep ended or failed; database clock';

COMMENT ON COLUMN sweep_watermark.missed IS 'missing webhooks found in all';

COMMENT ON COLUMN sweep_watermark.last_compared IS 'entities compared by the last sweep that finished';

COMMENT ON COLUMN sweep_watermark.last_missed IS 'changes among them that no webhook reported';

COMMENT ON COLUMN sweep_watermark.last_added IS 'events that it added for these';

COMMENT ON COLUMN sweep_watermark.error IS 'error of the last sweep; empty: it finished';

COMMENT ON COLUMN sweep_watermark.lease_until IS 'while a relay sweeps: end of its lease; database clock';

COMMENT ON COLUMN sweep_watermark.relay_node IS 'while a relay sweeps: relay_node.id of the process';

COMMENT ON COLUMN sweep_watermark.command_id IS 'command that asked for a sweep now: relay_command.id; empty once it has ended';

CREATE TABLE write_probe (
    id INTEGER NOT NULL,
    probed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_write_probe PRIMARY KEY (id),
    CONSTRAINT ck_write_probe_one_row CHECK (id = 1),
    CONSTRAINT ck_write_probe_probed_at_is_readable CHECK (probed_at BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
);

COMMENT ON TABLE write_probe IS 'One row, written by health checks: a database that can be read but not written is not ready.';

COMMENT ON COLUMN write_probe.id IS 'always 1';

COMMENT ON COLUMN write_probe.probed_at IS 'time of the last health check';

CREATE TABLE throughput_minute (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    outcome TEXT NOT NULL,
    minute TIMESTAMP WITH TIME ZONE NOT NULL,
    count BIGINT DEFAULT 0 NOT NULL,
    bytes BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_throughput_minute PRIMARY KEY (kind, name, outcome, minute),
    CONSTRAINT ck_throughput_minute_kind CHECK (kind IN ('source', 'route', 'destination')),
    CONSTRAINT ck_throughput_minute_minute_is_readable CHECK (minute BETWEEN '0001-01-01 00:00:00.000000Z' AND '9999-12-31 23:59:59.999999Z')
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX ix_throughput_minute_minute ON throughput_minute (minute);

COMMENT ON TABLE throughput_minute IS 'Figures of each minute, added up by receivers and relays about every ten seconds. Figures, not facts: a killed process loses its latest ones.';

COMMENT ON COLUMN throughput_minute.kind IS 'source, route or destination';

COMMENT ON COLUMN throughput_minute.name IS 'its name in inbox.toml; (unknown) for all unknown sources together';

COMMENT ON COLUMN throughput_minute.outcome IS 'of a source: stored, duplicate, swept (added by a sweep), rejected or unavailable (answered with 503); of a route or destination: a kind of fact, as in delivery_log';

COMMENT ON COLUMN throughput_minute.minute IS 'beginning of the minute; database clock';

COMMENT ON COLUMN throughput_minute.count IS 'events, requests or facts in this minute';

COMMENT ON COLUMN throughput_minute.bytes IS 'bytes of the bodies that were stored; 0 for routes and destinations';

CREATE VIEW delivery AS
SELECT i.seq, r.route AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       coalesce(o.state, l.kind) AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN CAST(substring(e.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) ELSE CAST(substring(l.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CAST(substring(l.detail ->> 'by' FROM '^[0-9]{1,18}$') AS bigint) END AS superseded_by
FROM inbox i CROSS JOIN LATERAL unnest(i.routes) AS r(route)
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = r.route
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = r.route AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = r.route AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE 1 = 1
UNION ALL
SELECT i.seq, r.route AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       coalesce(o.state, l.kind) AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN CAST(substring(e.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) ELSE CAST(substring(l.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CAST(substring(l.detail ->> 'by' FROM '^[0-9]{1,18}$') AS bigint) END AS superseded_by
FROM inbox i JOIN delivery_log r ON r.seq = i.seq AND r.kind = 'replayed'
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = r.route
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = r.route AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = r.route AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE NOT r.route = ANY (i.routes) AND NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = r.seq AND f.route = r.route AND f.kind = 'replayed' AND f.id < r.id)
UNION ALL
SELECT i.seq, CAST(NULL AS text) AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       'unrouted' AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN CAST(substring(e.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) ELSE CAST(substring(l.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN CAST(substring(l.detail ->> 'by' FROM '^[0-9]{1,18}$') AS bigint) END AS superseded_by
FROM inbox i
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = CAST(NULL AS text)
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = CAST(NULL AS text) AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = CAST(NULL AS text) AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE i.routes = '{}' AND NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.kind = 'replayed');

CREATE VIEW dead_letter AS
SELECT o.seq, o.route, o.lane, o.state, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at,
       i.received_at, o.attempt AS attempts, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
       CAST(substring(l.detail #>> '{calls,-1,status}' FROM '^[0-9][0-9][0-9]$') AS int) AS last_status
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
       i.received_at AS oldest_received_at, CAST(round(extract(epoch FROM statement_timestamp() - i.received_at), 3) AS float8) AS oldest_age_seconds
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
SELECT DISTINCT r.key AS route, g.value ->> 0 AS kind, g.value ->> 1 AS name
FROM relay_node n
CROSS JOIN LATERAL jsonb_each(n.routes) r
CROSS JOIN LATERAL jsonb_array_elements(CASE jsonb_typeof(r.value) WHEN 'array' THEN r.value ELSE '[]' END) g
WHERE n.routes IS NOT NULL AND n.stopped_at IS NULL AND n.heartbeat_at >= statement_timestamp() + make_interval(secs => -15);

CREATE VIEW source_health AS
SELECT known.source, (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome = 'stored' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome = 'duplicate') m) AS last_arrival_at,
       (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('stored', 'swept') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS events_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('stored', 'swept') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS events_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('duplicate') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS duplicates_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('duplicate') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS duplicates_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('rejected') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS rejected_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = 'source' AND t.name = known.source AND t.outcome IN ('rejected') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS rejected_day,
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
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('delivered', 'unchanged') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS delivered_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('delivered', 'unchanged') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS delivered_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('attempt_failed', 'abandoned') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS failed_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('attempt_failed', 'abandoned') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS failed_day,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('dead') AND t.minute > statement_timestamp() + make_interval(secs => -3600)) AS dead_hour,
           (SELECT coalesce(sum(t.count), 0) FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome IN ('dead') AND t.minute > statement_timestamp() + make_interval(secs => -86400)) AS dead_day,
           (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'delivered' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'unchanged' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'skipped') m) AS last_success_at,
           (SELECT max(m.minute) FROM (SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'attempt_failed' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'abandoned' UNION ALL SELECT max(t.minute) AS minute FROM throughput_minute t WHERE t.kind = subject.kind AND t.name = subject.name AND t.outcome = 'dead') m) AS last_failure_at,
           g.paused_at, coalesce(g.breaker, 'closed') AS breaker, g.breaker_until, g.breaker_cause,
           CASE WHEN g.held_until > statement_timestamp() + make_interval(secs => 0) THEN g.held_until END AS held_until,
           CASE WHEN g.held_until > statement_timestamp() + make_interval(secs => 0) THEN g.hold_reason END AS hold_reason
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
    SELECT 1 FROM relay_node n WHERE n.stopped_at IS NULL AND n.heartbeat_at >= statement_timestamp() + make_interval(secs => -15))
UNION ALL
SELECT 'crash_loop' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'gone' AS state, NULL AS for_seconds,
       'host ' || n.host || ': ' || count(*) || ' relays died soon after they had started' AS why, NULL AS number
FROM relay_node n
WHERE n.stopped_at IS NULL AND CAST(round(extract(epoch FROM statement_timestamp() - n.heartbeat_at), 3) AS float8) > 15 AND CAST(round(extract(epoch FROM statement_timestamp() - n.started_at), 3) AS float8) < 600
GROUP BY n.host
HAVING count(*) >= 3
UNION ALL
SELECT 'step_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, 'failing' AS state, NULL AS for_seconds,
       'relay ' || n.host || ' pid ' || n.pid || ': step ' || step.key || ' fails: ' || step.value AS why, NULL AS number
FROM relay_node n CROSS JOIN LATERAL jsonb_each_text(n.failing) AS step(key, value)
WHERE n.failing IS NOT NULL AND n.stopped_at IS NULL AND CAST(round(extract(epoch FROM statement_timestamp() - n.heartbeat_at), 3) AS float8) <= 15
UNION ALL
SELECT 'failing' AS finding, r.seq, r.route, NULL AS lane, 'failing' AS state, CAST(round(extract(epoch FROM statement_timestamp() - r.began_at), 3) AS float8) AS for_seconds,
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
       CAST(round(extract(epoch FROM statement_timestamp() - max(c.at)), 3) AS float8) AS for_seconds,
       'relays ' || min(c.relay) || ' and ' || max(c.relay) || ' run with different routes or destinations' AS why, NULL AS number
FROM (
    SELECT min(n.configured_at) AS at, min(n.host || ' pid ' || n.pid || ' (since ' || to_char(n.configured_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"') || ')') AS relay
    FROM relay_node n
    WHERE n.config_hash IS NOT NULL AND n.stopped_at IS NULL AND CAST(round(extract(epoch FROM statement_timestamp() - n.heartbeat_at), 3) AS float8) <= 15
    GROUP BY n.config_hash) c
HAVING count(*) > 1 AND max(c.at) < statement_timestamp() + make_interval(secs => -60)
UNION ALL
SELECT 'unordered' AS finding, o.seq, o.route, o.lane, o.state, CAST(round(extract(epoch FROM statement_timestamp() - i.received_at), 3) AS float8) AS for_seconds,
       'no relay has ordered it, and nothing moves' AS why, NULL AS number
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'received' ORDER BY seq LIMIT 1000) o CROSS JOIN LATERAL (SELECT * FROM inbox i WHERE i.seq = o.seq OFFSET 0) AS i
WHERE i.received_at < statement_timestamp() + make_interval(secs => -60) AND NOT EXISTS (SELECT 1 FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > statement_timestamp() + make_interval(secs => -60))
UNION ALL
SELECT 'stuck' AS finding, o.seq, o.route, o.lane, o.state, CAST(round(extract(epoch FROM statement_timestamp() - o.due_at), 3) AS float8) AS for_seconds,
       CASE WHEN EXISTS (SELECT 1 FROM route_gate) AND NOT EXISTS (SELECT 1 FROM route_gate k WHERE k.route = o.route)
            THEN 'due, and no running relay knows its route: relay status says how to go on'
            ELSE 'due, and nothing moves on its route' END AS why,
       NULL AS number
FROM (
        WITH RECURSIVE found(name) AS (
            SELECT min(t.route) FROM open_delivery t WHERE t.state = 'ready'
            UNION ALL
            SELECT (SELECT min(t.route) FROM open_delivery t WHERE t.state = 'ready' AND t.route > found.name) FROM found WHERE found.name IS NOT NULL)
        SELECT name FROM found WHERE name IS NOT NULL) r CROSS JOIN LATERAL (SELECT * FROM open_delivery o WHERE o.route = r.name AND o.state = 'ready' AND o.due_at < statement_timestamp() + make_interval(secs => -60) ORDER BY o.due_at, o.seq LIMIT 1000) AS o CROSS JOIN LATERAL (SELECT * FROM inbox i WHERE i.seq = o.seq OFFSET 0) AS i
WHERE r.name NOT IN (SELECT newest.route FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > statement_timestamp() + make_interval(secs => -60)
    UNION ALL SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > statement_timestamp() + make_interval(secs => 0))
  AND NOT EXISTS (SELECT 1 FROM route_gate k JOIN gate g ON g.kind = k.kind AND g.name = k.name
                  WHERE k.route = o.route AND (g.paused_at IS NOT NULL OR g.breaker <> 'closed' OR g.held_until > statement_timestamp() + make_interval(secs => 0) OR g.rate_used_until > statement_timestamp() + make_interval(secs => 0)))
  AND o.route NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'route' AND g.paused_at IS NOT NULL) AND i.source NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'source' AND g.paused_at IS NOT NULL)
  AND coalesce(replace(replace(i.source, '\', '\\'), '|', '\|') || '|' || replace(replace(i.entity_type, '\', '\\'), '|', '\|') || '|' || replace(replace(i.entity_id, '\', '\\'), '|', '\|'), '') NOT IN (SELECT g.name FROM gate g WHERE g.kind = 'entity' AND g.paused_at IS NOT NULL)
UNION ALL
SELECT 'stuck' AS finding, r.seq, r.route, r.lane, r.state, CAST(round(extract(epoch FROM statement_timestamp() - r.lease_until), 3) AS float8),
       'its lease ran out, and no relay has rescued it', NULL
FROM open_delivery r
WHERE r.state = 'in_flight' AND r.lease_until < statement_timestamp() + make_interval(secs => -60)
  AND r.route NOT IN (SELECT newest.route FROM (SELECT n.route, n.at FROM delivery_log n ORDER BY n.id DESC LIMIT 20000) newest WHERE newest.at > statement_timestamp() + make_interval(secs => -60)
    UNION ALL SELECT f.route FROM open_delivery f WHERE f.state = 'in_flight' AND f.lease_until > statement_timestamp() + make_interval(secs => 0))
UNION ALL
SELECT 'blocked' AS finding, o.seq, o.route, o.lane, o.state, CAST(round(extract(epoch FROM statement_timestamp() - l.at), 3) AS float8) AS for_seconds,
       'it is dead and blocks its lane: relay replay, unblock or cancel' AS why,
       (SELECT count(*) FROM (
           SELECT 1 FROM open_delivery w WHERE w.route = o.route AND w.lane = o.lane AND w.state = 'waiting' LIMIT 1000
       ) n) AS number
FROM (SELECT seq, route, lane, state FROM open_delivery WHERE state = 'blocked' LIMIT 1000) o
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
UNION ALL
SELECT 'command' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, CAST(round(extract(epoch FROM statement_timestamp() - c.asked_at), 3) AS float8) AS for_seconds,
       'command ' || c.id || ' (' || c.kind || '): ' || 'asked a minute ago, and no relay has taken it up' AS why, NULL AS number
FROM relay_command c
WHERE c.state = 'asked' AND CAST(round(extract(epoch FROM statement_timestamp() - c.asked_at), 3) AS float8) > 60
UNION ALL
SELECT 'command_failed' AS finding, NULL AS seq, NULL AS route, NULL AS lane, c.state, CAST(round(extract(epoch FROM statement_timestamp() - c.asked_at), 3) AS float8) AS for_seconds,
       'command ' || c.id || ' (' || c.kind || '): ' || CASE WHEN c.state IN ('failed', 'refused') THEN c.state || ': ' || coalesce(c.answer, '')
                       ELSE c.failed || ' could not be changed, such as ' || coalesce(c.error, '') END AS why, NULL AS number
FROM (
    SELECT id, kind, state, asked_at, finished_at, failed, answer, error FROM relay_command WHERE NOT dry_run
    ORDER BY id DESC
    LIMIT 1000) c
WHERE (c.state IN ('failed', 'refused') OR c.failed > 0)
  AND (c.finished_at IS NULL OR CAST(round(extract(epoch FROM statement_timestamp() - c.finished_at), 3) AS float8) < 3600)
) b;

CREATE FUNCTION inbox_body_text(body bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path FROM CURRENT AS $$
BEGIN
    RETURN convert_from(body, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
    RETURN '\x' || encode(body, 'hex');
END $$;

CREATE VIEW event AS
SELECT i.seq, i.source, i.dedup_key, i.entity_type, i.entity_id, i.event_type, i.action, i.event_id, i.occurred_at, i.received_at, i.routes, i.content_type, i.body_bytes, i.body_is_text, i.body_sha256, i.traceparent, i.erased_at, p.headers,
       CASE WHEN p.seq IS NULL THEN NULL WHEN i.body_is_text THEN inbox_body_text(p.body) ELSE '\x' || encode(p.body, 'hex') END AS body,
       p.seq IS NULL AS is_pruned, i.erased_at IS NOT NULL AS is_erased
FROM inbox i LEFT JOIN inbox_payload p ON p.seq = i.seq;

CREATE VIEW entity_timeline AS
SELECT i.source, i.entity_type, i.entity_id, i.received_at AS at, 'arrived' AS what, i.seq, CAST(NULL AS text) AS route,
       i.event_type || coalesce(', for ' || nullif(array_to_string(i.routes, ', '), ''), ', for no route') AS summary, CAST(0 AS bigint) AS fact_id
FROM inbox i
UNION ALL
SELECT i.source, i.entity_type, i.entity_id, d.received_at, 'duplicate', i.seq, NULL,
       d.times || CASE WHEN d.times = 1 THEN ' request' ELSE ' requests' END
           || CASE WHEN d.body IS NOT NULL THEN ' with another body' ELSE '' END
           || coalesce(': not judged: ' || d.error, ''), 0
FROM inbox i CROSS JOIN LATERAL (SELECT * FROM duplicate_request r WHERE r.seq = i.seq OFFSET 0) d

UNION ALL
SELECT i.source, i.entity_type, i.entity_id, f.at, f.kind, i.seq, f.route,
       coalesce(f.detail ->> 'error', (f.detail ->> 'who') || ': ' || (f.detail ->> 'why'), f.detail ->> 'why',
                f.detail ->> 'did', f.detail ->> 'because', ''), f.id
FROM inbox i CROSS JOIN LATERAL (SELECT * FROM delivery_log r WHERE r.seq = i.seq OFFSET 0) f;

COMMENT ON VIEW event IS 'Every event as inbox has it, with its headers and its body as text. Query it by seq, entity or source and dedup_key.';

COMMENT ON COLUMN event.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN event.source IS 'sender: a name of [sources] in inbox.toml';

COMMENT ON COLUMN event.dedup_key IS 'key of the event: another request of the source with this key is a duplicate; has a digest in place of an entity''s id';

COMMENT ON COLUMN event.entity_type IS 'type of the entity that changed, such as USER; empty when the event has no entity';

COMMENT ON COLUMN event.entity_id IS 'id of the entity that changed, as the source gives it; a pseudonym after erasure';

COMMENT ON COLUMN event.event_type IS 'event type, verbatim from the sender';

COMMENT ON COLUMN event.action IS 'effect on the entity: create, update, delete or other';

COMMENT ON COLUMN event.event_id IS 'the sender''s own id of the event, if any';

COMMENT ON COLUMN event.occurred_at IS 'the event''s own time, to the microsecond; its arrival where it has no plausible one';

COMMENT ON COLUMN event.received_at IS 'time at which the receiver had read the request';

COMMENT ON COLUMN event.routes IS 'names of the routes that matched when it arrived; empty: unrouted';

COMMENT ON COLUMN event.content_type IS 'Content-Type of the body';

COMMENT ON COLUMN event.body_bytes IS 'size of the body in bytes; stays after its payload is gone';

COMMENT ON COLUMN event.body_is_text IS 'true: the body is UTF-8 without NUL; the view event has it as text';

COMMENT ON COLUMN event.body_sha256 IS 'SHA-256 of the body; stays after its payload is gone';

COMMENT ON COLUMN event.traceparent IS 'W3C trace context of the request: of the receiver''s span where that is sampled, else the sender''s; empty after erasure';

COMMENT ON COLUMN event.erased_at IS 'time at which the entity was erased: entity_id is a pseudonym, and nothing else names it';

COMMENT ON COLUMN event.headers IS 'allow-listed request headers; empty when the payload is gone';

COMMENT ON COLUMN event.body IS 'body as text, or \x and hex digits if it is not UTF-8 or has a NUL; empty when the payload is gone';

COMMENT ON COLUMN event.is_pruned IS 'true: retention or an erasure has deleted its headers and body';

COMMENT ON COLUMN event.is_erased IS 'true: a person was erased from it';

COMMENT ON VIEW delivery IS 'State of each event on each route. Query it by seq or entity; for counts use backlog.';

COMMENT ON COLUMN delivery.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN delivery.route IS 'the route it takes: a name of [routes] in inbox.toml';

COMMENT ON COLUMN delivery.source IS 'sender: a name of [sources] in inbox.toml';

COMMENT ON COLUMN delivery.entity_type IS 'type of the entity that changed, such as USER; empty when the event has no entity';

COMMENT ON COLUMN delivery.entity_id IS 'id of the entity that changed, as the source gives it; a pseudonym after erasure';

COMMENT ON COLUMN delivery.event_type IS 'event type, verbatim from the sender';

COMMENT ON COLUMN delivery.action IS 'effect on the entity: create, update, delete or other';

COMMENT ON COLUMN delivery.occurred_at IS 'the event''s own time, to the microsecond; its arrival where it has no plausible one';

COMMENT ON COLUMN delivery.received_at IS 'time at which the receiver had read the request';

COMMENT ON COLUMN delivery.state IS 'as in open_delivery, or the kind of the last fact when it has ended; unrouted: the event matched no route';

COMMENT ON COLUMN delivery.attempts IS 'attempts used in its current or last run';

COMMENT ON COLUMN delivery.due_at IS 'if ready: time of the next attempt; database clock';

COMMENT ON COLUMN delivery.lane IS 'the unit of order on the route: TYPE|ID of the entity, * or the event itself';

COMMENT ON COLUMN delivery.relay_node IS 'if in_flight: relay_node.id of the process that delivers it';

COMMENT ON COLUMN delivery.last_fact IS 'kind of its newest row in delivery_log; an erasure is not counted';

COMMENT ON COLUMN delivery.last_fact_at IS 'time of that row';

COMMENT ON COLUMN delivery.last_error IS 'while it is open: error of its newest failed attempt';

COMMENT ON COLUMN delivery.last_status IS 'HTTP status of the last call: of the newest failed attempt while it is open, else of the last fact';

COMMENT ON COLUMN delivery.superseded_by IS 'if superseded: the seq of the event that replaces it';

COMMENT ON VIEW dead_letter IS 'Deliveries that were given up, with cause and error. relay replay starts them again.';

COMMENT ON COLUMN dead_letter.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN dead_letter.route IS 'the route it takes: a name of [routes] in inbox.toml';

COMMENT ON COLUMN dead_letter.lane IS 'the unit of order on the route: TYPE|ID of the entity, * or the event itself';

COMMENT ON COLUMN dead_letter.state IS 'dead, or blocked when it blocks its lane';

COMMENT ON COLUMN dead_letter.source IS 'sender: a name of [sources] in inbox.toml';

COMMENT ON COLUMN dead_letter.entity_type IS 'type of the entity that changed, such as USER; empty when the event has no entity';

COMMENT ON COLUMN dead_letter.entity_id IS 'id of the entity that changed, as the source gives it; a pseudonym after erasure';

COMMENT ON COLUMN dead_letter.event_type IS 'event type, verbatim from the sender';

COMMENT ON COLUMN dead_letter.action IS 'effect on the entity: create, update, delete or other';

COMMENT ON COLUMN dead_letter.occurred_at IS 'the event''s own time, to the microsecond; its arrival where it has no plausible one';

COMMENT ON COLUMN dead_letter.received_at IS 'time at which the receiver had read the request';

COMMENT ON COLUMN dead_letter.attempts IS 'attempts used in its last run';

COMMENT ON COLUMN dead_letter.died_at IS 'time at which it was given up';

COMMENT ON COLUMN dead_letter.cause IS 'exhausted, crash_loop, unrecordable, unprocessable, payload_gone, or an error class, as in docs/reference/delivery.md';

COMMENT ON COLUMN dead_letter.error IS 'the last error, in one sentence';

COMMENT ON COLUMN dead_letter.last_status IS 'HTTP status of the last call';

COMMENT ON VIEW backlog IS 'Per route: open deliveries by state, and the age of the oldest that is not dead.';

COMMENT ON COLUMN backlog.route IS 'the route it takes: a name of [routes] in inbox.toml';

COMMENT ON COLUMN backlog.open IS 'sum of the following states';

COMMENT ON COLUMN backlog.received IS 'not ordered yet';

COMMENT ON COLUMN backlog.waiting IS 'behind the head of their lane';

COMMENT ON COLUMN backlog.ready IS 'heads, due now or later';

COMMENT ON COLUMN backlog.in_flight IS 'heads under a relay''s lease';

COMMENT ON COLUMN backlog.blocked IS 'given up, and blocking their lanes';

COMMENT ON COLUMN backlog.dead IS 'given up';

COMMENT ON COLUMN backlog.oldest_received_at IS 'arrival of the oldest that is not dead';

COMMENT ON COLUMN backlog.oldest_age_seconds IS 'seconds since then';

COMMENT ON VIEW stuck IS 'Deliveries, commands and relays that make no progress, and why, as relay status --check reports them; deliveries behind a closed gate are excluded. Of each route, the 1,000 longest due. Empty when all is well. It knows inbox.toml as far as running relays have stored it: see route_gate.';

COMMENT ON COLUMN stuck.finding IS 'no_relay, crash_loop, step_failed, config_differs, failing, unordered, stuck, blocked, command, or command_failed';

COMMENT ON COLUMN stuck.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN stuck.route IS 'the route it takes: a name of [routes] in inbox.toml';

COMMENT ON COLUMN stuck.lane IS 'the unit of order on the route: TYPE|ID of the entity, * or the event itself';

COMMENT ON COLUMN stuck.state IS 'state of the delivery or command; gone or failing for relays';

COMMENT ON COLUMN stuck.for_seconds IS 'seconds since the problem began; empty: unknown';

COMMENT ON COLUMN stuck.why IS 'the problem in one sentence';

COMMENT ON COLUMN stuck.number IS 'blocked: deliveries behind it, counted to 1,000; failing: attempts that failed in a row; else empty';

COMMENT ON VIEW route_gate IS 'Gates on the way of each route, as the configuration of the running relays has them. One without a row in gate is open.';

COMMENT ON COLUMN route_gate.route IS 'the route';

COMMENT ON COLUMN route_gate.kind IS 'source, route, destination or api: gate.kind';

COMMENT ON COLUMN route_gate.name IS 'its name in inbox.toml: gate.name';

COMMENT ON VIEW entity_timeline IS 'Everything that happened to the events of an entity: arrivals, duplicates, attempts and outcomes. Query it by source, entity_type and entity_id, ORDER BY at, seq, fact_id, what.';

COMMENT ON COLUMN entity_timeline.source IS 'sender: a name of [sources] in inbox.toml';

COMMENT ON COLUMN entity_timeline.entity_type IS 'type of the entity that changed, such as USER; empty when the event has no entity';

COMMENT ON COLUMN entity_timeline.entity_id IS 'id of the entity that changed, as the source gives it; a pseudonym after erasure';

COMMENT ON COLUMN entity_timeline.at IS 'time of the arrival, or of the recording';

COMMENT ON COLUMN entity_timeline.what IS 'arrived, duplicate, or a kind of fact, as in delivery_log';

COMMENT ON COLUMN entity_timeline.seq IS 'number of the event in arrival order; gaps mean nothing';

COMMENT ON COLUMN entity_timeline.route IS 'the route; empty for arrivals and duplicates';

COMMENT ON COLUMN entity_timeline.summary IS 'the outcome, error, or person and reason, in one sentence';

COMMENT ON COLUMN entity_timeline.fact_id IS 'if a fact: delivery_log.id; else 0';

COMMENT ON VIEW source_health IS 'Sources with figures or events: the last arrival, and the requests of the last hour and day. The hour and the day end with the last figures, about ten seconds ago.';

COMMENT ON COLUMN source_health.source IS 'name of the source; (unknown) for all unknown sources together';

COMMENT ON COLUMN source_health.last_arrival_at IS 'last event or duplicate, to the minute; empty: none in the age of the figures';

COMMENT ON COLUMN source_health.events_hour IS 'events stored in the last hour, those of sweeps too';

COMMENT ON COLUMN source_health.events_day IS 'events stored in the last day, those of sweeps too';

COMMENT ON COLUMN source_health.duplicates_hour IS 'duplicates in the last hour';

COMMENT ON COLUMN source_health.duplicates_day IS 'duplicates in the last day';

COMMENT ON COLUMN source_health.rejected_hour IS 'rejected requests in the last hour; more than rejected_request has, when there were many';

COMMENT ON COLUMN source_health.rejected_day IS 'rejected requests in the last day; more than rejected_request has, when there were many';

COMMENT ON COLUMN source_health.is_silent IS 'true while the alert source_silent fires, which needs silent_after in inbox.toml';

COMMENT ON COLUMN source_health.paused_at IS 'time at which an operator paused it; empty: not paused';

COMMENT ON VIEW destination_health IS 'Routes, destinations and apis: their health, the outcomes of deliveries in the last hour and day, and their gates. Figures of a destination are of all routes to it; apis have only a gate.';

COMMENT ON COLUMN destination_health.kind IS 'route, destination or api';

COMMENT ON COLUMN destination_health.name IS 'its name in inbox.toml';

COMMENT ON COLUMN destination_health.health IS 'paused, open, half_open or retired (its breaker), held (it asked for no call), failing (the last attempt failed, and deliveries are open) or ok';

COMMENT ON COLUMN destination_health.delivered_hour IS 'deliveries that succeeded in the last hour';

COMMENT ON COLUMN destination_health.delivered_day IS 'deliveries that succeeded in the last day';

COMMENT ON COLUMN destination_health.failed_hour IS 'failed and abandoned attempts in the last hour';

COMMENT ON COLUMN destination_health.failed_day IS 'failed and abandoned attempts in the last day';

COMMENT ON COLUMN destination_health.dead_hour IS 'deliveries given up in the last hour';

COMMENT ON COLUMN destination_health.dead_day IS 'deliveries given up in the last day';

COMMENT ON COLUMN destination_health.last_success_at IS 'last success, to the minute; empty: none in the age of the figures';

COMMENT ON COLUMN destination_health.last_failure_at IS 'last failed attempt or death, to the minute';

COMMENT ON COLUMN destination_health.paused_at IS 'time at which an operator paused it; empty: not paused';

COMMENT ON COLUMN destination_health.breaker IS 'closed, open, half_open or retired';

COMMENT ON COLUMN destination_health.breaker_until IS 'if open: time of the next probe; database clock';

COMMENT ON COLUMN destination_health.breaker_cause IS 'cause of its opening';

COMMENT ON COLUMN destination_health.held_until IS 'rate hold: time until which the endpoint asked not to be called; database clock';

COMMENT ON COLUMN destination_health.hold_reason IS 'header that asked for it';

CREATE FUNCTION inbox_deletes_old_rows_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF EXISTS (SELECT FROM gone g WHERE g.received_at >= clock_timestamp() - interval '7 days') OR EXISTS (
        SELECT FROM gone g CROSS JOIN LATERAL (SELECT FROM open_delivery o WHERE o.seq = g.seq LIMIT 1) AS found
    ) THEN
        RAISE EXCEPTION 'inbox is append-only: only events older than 7 days with nothing open can be deleted' USING ERRCODE = 'restrict_violation';
    END IF;
    DELETE FROM inbox_payload WHERE seq = ANY (ARRAY(SELECT g.seq FROM gone g));
    RETURN NULL;
END $$;

CREATE TRIGGER inbox_deletes_old_rows_only AFTER DELETE ON inbox REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION inbox_deletes_old_rows_only();

CREATE FUNCTION inbox_payload_is_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
            DELETE FROM edited_body e WHERE e.seq = OLD.seq;
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'inbox_payload is append-only: only payloads of events with nothing open can be deleted' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER inbox_payload_is_append_only BEFORE UPDATE OR DELETE ON inbox_payload FOR EACH ROW EXECUTE FUNCTION inbox_payload_is_append_only();

CREATE FUNCTION edited_body_is_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
            RETURN OLD;
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM inbox_payload p WHERE p.seq = NEW.seq) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'edited_body: the event has no payload that could be edited' USING ERRCODE = 'restrict_violation';
    END IF;
    RAISE EXCEPTION 'edited_body is append-only: a row goes with the payload of its event' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER edited_body_is_append_only BEFORE INSERT OR UPDATE OR DELETE ON edited_body FOR EACH ROW EXECUTE FUNCTION edited_body_is_append_only();

CREATE FUNCTION delivery_log_deletes_old_attempts_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF EXISTS (
        SELECT FROM (
            SELECT g.seq, g.route, g.kind IN ('attempt_failed', 'abandoned') AND g.at < clock_timestamp() - interval '7 days' AS is_old FROM gone g
        ) g
        CROSS JOIN LATERAL (SELECT FROM inbox i WHERE i.seq = g.seq LIMIT 1) AS event
        WHERE NOT g.is_old OR EXISTS (SELECT FROM open_delivery o WHERE o.seq = g.seq AND o.route = g.route)
    ) THEN
        RAISE EXCEPTION 'delivery_log is append-only: only old attempts of ended deliveries can be deleted' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER delivery_log_deletes_old_attempts_only AFTER DELETE ON delivery_log REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION delivery_log_deletes_old_attempts_only();

CREATE FUNCTION inbox_changes_by_erasure_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF to_jsonb(NEW) - CAST('{entity_id, event_id, traceparent, erased_at}' AS text[]) = to_jsonb(OLD) - CAST('{entity_id, event_id, traceparent, erased_at}' AS text[])
       AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
       AND (NEW.event_id IS NULL OR NEW.event_id = OLD.event_id)
       AND OLD.entity_id IS NOT NULL AND NEW.entity_id ~ '^erased:[0-9a-f]{64}$'
       AND NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'inbox is append-only: only an erasure changes an event, and only to a pseudonym without texts of the person' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER inbox_changes_by_erasure_only BEFORE UPDATE ON inbox FOR EACH ROW EXECUTE FUNCTION inbox_changes_by_erasure_only();

CREATE FUNCTION delivery_log_changes_by_erasure_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF to_jsonb(NEW) - 'detail' = to_jsonb(OLD) - 'detail' AND (
       EXISTS (SELECT FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
       AND NEW.detail = coalesce((SELECT jsonb_object_agg(d.key, CASE WHEN d.key IN ('error', 'why') THEN to_jsonb(CAST('erased' AS text)) ELSE d.value END) FROM jsonb_each(OLD.detail) d WHERE d.key IN ('attempt', 'because', 'blocks_lane', 'by', 'cause', 'command', 'counted', 'crashes', 'did', 'due_at', 'duplicate', 'edited_body', 'error_class', 'fetch_began_at', 'lane', 'last_modified', 'late', 'of', 'relay_node', 'stale_suspected', 'was_due_at', 'who', 'error', 'why')), '{}') OR OLD.kind IN ('attempt_failed', 'dead') AND NEW.detail = OLD.detail - 'calls'
       AND NOT EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq AND o.route = OLD.route)) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'delivery_log is append-only: only the erasure of its event empties a fact, and only retention removes the calls of ended attempts' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER delivery_log_changes_by_erasure_only BEFORE UPDATE ON delivery_log FOR EACH ROW EXECUTE FUNCTION delivery_log_changes_by_erasure_only();

CREATE FUNCTION inbox_is_not_truncated() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'inbox is append-only: it can''t be truncated' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER inbox_is_not_truncated BEFORE TRUNCATE ON inbox FOR EACH STATEMENT EXECUTE FUNCTION inbox_is_not_truncated();

CREATE FUNCTION inbox_payload_is_not_truncated() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'inbox_payload is append-only: it can''t be truncated' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER inbox_payload_is_not_truncated BEFORE TRUNCATE ON inbox_payload FOR EACH STATEMENT EXECUTE FUNCTION inbox_payload_is_not_truncated();

CREATE FUNCTION edited_body_is_not_truncated() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'edited_body is append-only: it can''t be truncated' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER edited_body_is_not_truncated BEFORE TRUNCATE ON edited_body FOR EACH STATEMENT EXECUTE FUNCTION edited_body_is_not_truncated();

CREATE FUNCTION delivery_log_is_not_truncated() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'delivery_log is append-only: it can''t be truncated' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER delivery_log_is_not_truncated BEFORE TRUNCATE ON delivery_log FOR EACH STATEMENT EXECUTE FUNCTION delivery_log_is_not_truncated();

CREATE FUNCTION relay_command_is_valid() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN

    IF TG_OP = 'DELETE' THEN
        IF OLD.state IN ('asked', 'running') THEN RAISE EXCEPTION 'an open command can''t be deleted: cancel it first with UPDATE relay_command SET state = ''cancelled''' USING ERRCODE = 'restrict_violation'; END IF;
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.id IS DISTINCT FROM OLD.id OR NEW.kind IS DISTINCT FROM OLD.kind OR NEW.asked_by IS DISTINCT FROM OLD.asked_by OR NEW.asked_at IS DISTINCT FROM OLD.asked_at OR NEW.dry_run IS DISTINCT FROM OLD.dry_run OR NEW.reason IS DISTINCT FROM OLD.reason OR NEW.selection IS DISTINCT FROM OLD.selection AND (OLD.state IN ('asked', 'running') OR NEW.state IN ('asked', 'running') OR NOT coalesce(substr(NEW.selection ->> 'entity_id', 1, 7), '') = 'erased:')) THEN RAISE EXCEPTION 'a command stays as it was asked: cancel it with UPDATE relay_command SET state = ''cancelled'', and insert another one' USING ERRCODE = 'check_violation'; END IF;
IF (NOT (OLD.state IN ('asked', 'running')) AND NEW.state <> OLD.state AND NOT (OLD.state = 'cancelled' AND NEW.state = 'running')) THEN RAISE EXCEPTION 'a command that has ended stays as it is: insert another one' USING ERRCODE = 'check_violation'; END IF;
IF (NEW.state NOT IN (OLD.state, 'cancelled') AND (NEW.finished_at IS NULL) <> (NEW.state IN ('asked', 'running'))) THEN RAISE EXCEPTION 'only a relay ends a command, and relay continue --command lets a stopped one go on: stop it with UPDATE relay_command SET state = ''cancelled''' USING ERRCODE = 'check_violation'; END IF;
        IF OLD.state IN ('asked', 'running') AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL THEN
            NEW.finished_at := clock_timestamp();
            NEW.answer := coalesce(NEW.answer, 'cancelled by hand');
        END IF;
    ELSIF NEW.state IN ('asked', 'running') THEN
        NEW.until_seq := coalesce(NEW.until_seq, CASE NEW.kind WHEN 'readmit' THEN (SELECT coalesce(max(id), 0) FROM rejected_request)
    ELSE (SELECT coalesce(max(seq), 0) FROM inbox) END);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER relay_command_is_valid BEFORE INSERT OR UPDATE OR DELETE ON relay_command FOR EACH ROW EXECUTE FUNCTION relay_command_is_valid();

REVOKE ALL ON FUNCTION relay_command_is_valid() FROM PUBLIC;

CREATE TABLE inbox_payload_default PARTITION OF inbox_payload DEFAULT;

CREATE TABLE inbox_payload_1 PARTITION OF inbox_payload FOR VALUES FROM (1) TO (100001);

CREATE FUNCTION inbox_payload_add_leaf(lo bigint, hi bigint) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
DECLARE
    leaf text := 'inbox_payload_' || lo;
    grantee oid;
BEGIN
    IF lo < 1 OR hi - lo NOT BETWEEN 10000 AND 5000000 OR to_regclass(leaf) IS NOT NULL
       OR EXISTS (SELECT FROM inbox_payload_default d WHERE d.seq >= lo AND d.seq < hi) THEN
        RETURN false;
    END IF;
    -- CREATE TABLE ... PARTITION OF would lock the table, and wait for every reader
    EXECUTE 'CREATE TABLE ' || leaf || ' (LIKE inbox_payload INCLUDING ALL)';
    -- access through inbox_payload asks for no right on a leaf, but ALTER DEFAULT PRIVILEGES may have given some
    FOR grantee IN SELECT DISTINCT a.grantee FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
                   WHERE c.oid = to_regclass(leaf) AND a.grantee <> c.relowner LOOP
        EXECUTE 'REVOKE ALL ON TABLE ' || leaf || ' FROM '
            || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END || ' CASCADE';
    END LOOP;
    EXECUTE 'ALTER TABLE inbox_payload ATTACH PARTITION ' || leaf || ' FOR VALUES FROM (' || lo || ') TO (' || hi || ')';
    RETURN true;
EXCEPTION WHEN lock_not_available OR check_violation OR duplicate_table OR invalid_object_definition THEN
    RETURN false;
END $$;

CREATE FUNCTION inbox_payload_expire_leaf(leaf text, cut timestamptz, OUT result text, OUT rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '100ms' AS $$
DECLARE
    lo bigint;
    hi bigint;
    began timestamptz;
    newest timestamptz;
    latest timestamptz;
    kept bigint;
    kept_bytes bigint;
    size bigint;
    survivors inbox_payload[];
BEGIN
    rows := 0;
    result := 'rows';
    SELECT l.first, l.beyond INTO lo, hi FROM (
SELECT c.relname AS name, CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([0-9]+)''\)'))[1] AS bigint) AS first, CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([0-9]+)''\)'))[1] AS bigint) AS beyond
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
WHERE h.inhparent = CAST('inbox_payload' AS regclass) AND c.relname = leaf) AS l;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING MESSAGE = 'inbox_payload has no leaf ' || leaf, ERRCODE = 'undefined_table';
    END IF;
    IF lo IS NULL THEN
        SELECT min(d.seq), max(d.seq) + 1 INTO lo, hi FROM inbox_payload_default d;
    END IF;
    IF lo IS NULL THEN
        RETURN;
    END IF;
    SELECT i.received_at INTO began FROM inbox i WHERE i.seq >= lo AND i.seq < hi ORDER BY i.seq LIMIT 1;
    SELECT i.received_at INTO latest FROM inbox i ORDER BY i.seq DESC LIMIT 1;
    -- numbers follow the order of arrival to within 10,000
    SELECT max(n.received_at) INTO newest
    FROM (SELECT i.received_at FROM inbox i WHERE i.seq >= lo AND i.seq < hi ORDER BY i.seq DESC LIMIT 10000) AS n;
    IF hi > (SELECT s.last_value FROM inbox_seq_seq s) AND leaf <> 'inbox_payload_default' OR newest >= cut THEN
        -- soon: all of it expires together, not much later than its first event, so no row of it is deleted before
        IF hi <= (SELECT s.last_value FROM inbox_seq_seq s) AND newest - began <= (latest - cut) / 5 THEN
            result := 'soon';
        END IF;
        RETURN;
    END IF;
    size := pg_total_relation_size(CAST(leaf AS regclass));
    SELECT count(*), coalesce(sum(i.body_bytes), 0) INTO kept, kept_bytes
    FROM (SELECT DISTINCT o.seq FROM open_delivery o WHERE o.seq >= lo AND o.seq < hi LIMIT 2001) AS o
    JOIN inbox i ON i.seq = o.seq;
    IF kept > 2000 OR kept_bytes > 16777216 OR size < 262144 + 4 * (kept_bytes + 500 * kept) THEN
        RETURN;
    END IF;
    SELECT c.reltuples INTO rows FROM pg_class c WHERE c.oid = CAST(leaf AS regclass);
    IF rows < 0 OR size < 67108864 THEN
        EXECUTE 'SELECT count(*) FROM ONLY ' || quote_ident(leaf) INTO rows;
    END IF;
    BEGIN
        -- in the order of those who open deliveries: they have this lock before they read a leaf
        PERFORM id FROM payload_lock WHERE id = 1 FOR UPDATE;
        EXECUTE 'LOCK TABLE ONLY ' || quote_ident(leaf) || ' IN ACCESS EXCLUSIVE MODE';
        EXECUTE 'SELECT array_agg(CAST(p AS inbox_payload)) FROM ONLY ' || quote_ident(leaf)
            || ' p WHERE p.seq IN (SELECT o.seq FROM open_delivery o WHERE o.seq >= $1 AND o.seq < $2) OR p.seq < $1 OR p.seq >= $2'
            INTO survivors USING lo, hi;  -- what came into the default leaf since its range was read has not expired
        EXECUTE 'TRUNCATE ONLY ' || quote_ident(leaf);
        INSERT INTO inbox_payload SELECT s.* FROM unnest(survivors) s;
        DELETE FROM edited_body e
        WHERE e.seq >= lo AND e.seq < hi AND NOT EXISTS (SELECT FROM unnest(survivors) s WHERE s.seq = e.seq);
    EXCEPTION WHEN lock_not_available THEN
        rows := 0;
        result := 'locked';
        RETURN;
    END;
    rows := greatest(rows - (SELECT count(*) FROM unnest(survivors) s WHERE s.seq >= lo AND s.seq < hi), 0);
    result := 'expired';
END $$;

CREATE FUNCTION inbox_payload_retire_leaf(leaf text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '50ms' AS $$
DECLARE
    lo bigint;
    hi bigint;
    found_rows bigint;
BEGIN
    SELECT l.first, l.beyond INTO lo, hi FROM (
SELECT c.relname AS name, CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([0-9]+)''\)'))[1] AS bigint) AS first, CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([0-9]+)''\)'))[1] AS bigint) AS beyond
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
WHERE h.inhparent = CAST('inbox_payload' AS regclass) AND c.relname = leaf) AS l;
    IF hi IS NULL OR hi > (SELECT s.last_value FROM inbox_seq_seq s) THEN
        RETURN false;
    END IF;
    EXECUTE 'SELECT count(*) FROM (SELECT FROM ' || quote_ident(leaf) || ' LIMIT 101) AS n' INTO found_rows;
    IF found_rows > 100 THEN
        RETURN false;
    END IF;
    -- its last payloads, of dead deliveries, move to the default leaf
    EXECUTE 'ALTER TABLE inbox_payload DETACH PARTITION ' || quote_ident(leaf);
    EXECUTE 'INSERT INTO inbox_payload SELECT * FROM ' || quote_ident(leaf);
    EXECUTE 'DROP TABLE ' || quote_ident(leaf);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

REVOKE ALL ON FUNCTION inbox_payload_add_leaf(bigint, bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION inbox_payload_expire_leaf(text, timestamptz) FROM PUBLIC;

REVOKE ALL ON FUNCTION inbox_payload_retire_leaf(text) FROM PUBLIC;

INSERT INTO order_lock (id) VALUES (1);

INSERT INTO payload_lock (id) VALUES (1);

INSERT INTO pruner (id) VALUES (1);

INSERT INTO write_probe (id, probed_at) VALUES (1, '2000-01-01 00:00:00.000000Z');
