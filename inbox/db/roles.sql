-- Roles of an installation on Postgres. Each may do what its program or its people need, and nothing else.
-- Run it as a superuser, or as the owner of the tables who may make roles: after each `inbox migrate`, and after each new login
-- role, since a member inherits rights but no settings. It may run again at any time, and takes away what was given by hand.
BEGIN;
SET LOCAL search_path = public, pg_temp;
SET LOCAL lock_timeout = '2s';

DO $$
DECLARE
    role text;
    things text;
BEGIN
    FOREACH role IN ARRAY ARRAY['inbox_receiver', 'inbox_relay', 'inbox_web', 'inbox_operator', 'inbox_reader', 'inbox_reader_without_payloads'] LOOP
        IF to_regrole(role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
        FOREACH things IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'FUNCTIONS'] LOOP
            EXECUTE format('REVOKE ALL ON ALL %s IN SCHEMA %I FROM %I', things, current_schema(), role);
        END LOOP;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), role);
    END LOOP;
    IF current_schema() <> 'public' THEN  -- other applications share that one
        EXECUTE format('REVOKE ALL ON SCHEMA %I FROM PUBLIC', current_schema());
    END IF;
END $$;

-- Everything but what a sender sent can be read; facts of failed attempts quote up to 1 KiB of what was sent on.
GRANT SELECT ON
    alembic_version, alert, delivery_log, gate, inbox, lane, open_delivery, order_lock, payload_lock, payload_reveal, pruner, pruning,
    relay_command, relay_node, route_failure, route_lock, sweep_watermark, throughput_minute, write_probe,
    backlog, dead_letter, delivery, destination_health, entity_timeline, route_gate, source_health, stuck
TO inbox_relay, inbox_web, inbox_operator, inbox_reader, inbox_reader_without_payloads;
GRANT SELECT ON duplicate_request, edited_body, event, inbox_payload, rejected_request TO inbox_relay, inbox_web, inbox_operator, inbox_reader;
GRANT EXECUTE ON FUNCTION inbox_body_text TO inbox_relay, inbox_web, inbox_operator, inbox_reader, inbox_reader_without_payloads;
DO $$
DECLARE
    of_name text;
BEGIN
    FOREACH of_name IN ARRAY ARRAY['duplicate_request', 'event', 'rejected_request'] LOOP
        EXECUTE (
            SELECT format('GRANT SELECT (%s) ON %I TO inbox_reader_without_payloads', string_agg(quote_ident(attname), ', '), of_name)
            FROM pg_attribute
            WHERE attrelid = to_regclass(of_name) AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('headers', 'body')
        );
    END LOOP;
END $$;

-- The receiver inserts what it stores, and reads keys of deduplication and states of deliveries: never an event or a fact.
GRANT SELECT ON alembic_version TO inbox_receiver;
GRANT INSERT, SELECT (seq, source, dedup_key, body_sha256, erased_at) ON inbox TO inbox_receiver;
GRANT INSERT ON inbox_payload TO inbox_receiver;
GRANT INSERT (seq, route, lane, occurred_at, state), SELECT (seq, route, state) ON open_delivery TO inbox_receiver;
GRANT SELECT (seq, route, error) ON dead_letter TO inbox_receiver;
GRANT INSERT, SELECT (id, seq, times, last_received_at), UPDATE (times, last_received_at, handled_at, error)
    ON duplicate_request TO inbox_receiver;
GRANT INSERT (received_at, source, status, cause, reason, field, remote_address, body_sha256, headers, body), SELECT (id)
    ON rejected_request TO inbox_receiver;
GRANT SELECT (id), UPDATE (probed_at) ON write_probe TO inbox_receiver;
GRANT INSERT (at, kind, subject, firing, detail), SELECT (id, kind, subject, firing) ON alert TO inbox_receiver;
GRANT SELECT, INSERT, UPDATE (count, bytes) ON throughput_minute TO inbox_receiver;
GRANT USAGE, SELECT ON SEQUENCE alert_id_seq, duplicate_request_id_seq, inbox_seq_seq, rejected_request_id_seq TO inbox_receiver;

-- The relay changes rows; triggers reject any other change of events and facts than by retention and erasure.
GRANT INSERT, UPDATE, DELETE ON
    alert, delivery_log, duplicate_request, gate, inbox, lane, open_delivery, pruning, rejected_request, relay_command, relay_node,
    route_failure, sweep_watermark, throughput_minute
TO inbox_relay;
GRANT INSERT, DELETE ON edited_body, inbox_payload TO inbox_relay;
GRANT INSERT, UPDATE (reason), DELETE ON payload_reveal TO inbox_relay;
GRANT INSERT, UPDATE ON route_lock TO inbox_relay;
GRANT UPDATE ON order_lock, payload_lock, pruner, write_probe TO inbox_relay;
GRANT USAGE, SELECT ON SEQUENCE
    alert_id_seq, delivery_log_id_seq, duplicate_request_id_seq, edited_body_id_seq, inbox_seq_seq, payload_reveal_id_seq, rejected_request_id_seq,
    relay_command_id_seq
TO inbox_relay;
GRANT EXECUTE ON FUNCTION inbox_payload_add_leaf, inbox_payload_expire_leaf, inbox_payload_retire_leaf TO inbox_relay;

-- The page signs commands with the name of the person who has signed in.
GRANT INSERT (kind, selection, reason, asked_by, asked_at, dry_run, matched), UPDATE (state, finished_at, answer)
    ON relay_command TO inbox_web;
GRANT INSERT (at, seq, who, reason) ON payload_reveal TO inbox_web;
GRANT INSERT (seq, body) ON edited_body TO inbox_web, inbox_operator;
GRANT USAGE ON SEQUENCE edited_body_id_seq, payload_reveal_id_seq, relay_command_id_seq TO inbox_web;

-- People ask for commands in SQL with the name of their login, and set the state `cancelled` to stop one.
GRANT INSERT (kind, selection, reason, dry_run), UPDATE (state) ON relay_command TO inbox_operator;
GRANT USAGE ON SEQUENCE edited_body_id_seq, relay_command_id_seq TO inbox_operator;

-- Timeouts of each role and its logins, and of the owner of the tables. Both programs set their own as well, which count first.
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        WITH wanted (n, role, name, value) AS (
            VALUES
                (1, 'inbox_receiver', 'statement_timeout', '30s'),  -- its sender gave up long before
                (2, 'inbox_relay', 'statement_timeout', '15min'),  -- a step takes seconds; verify and rebuild read for longer
                (3, 'inbox_web', 'statement_timeout', '30s'),  -- the page gives up after 2 s by itself
                (3, 'inbox_web', 'idle_in_transaction_session_timeout', '10s'),  -- a forgotten lock stops what waits for it
                (3, 'inbox_web', 'lock_timeout', '2s'),  -- what comes later waits behind a statement that waits for a lock
                (4, 'inbox_operator', 'statement_timeout', '5min'),
                (4, 'inbox_operator', 'idle_in_transaction_session_timeout', '10s'),
                (4, 'inbox_operator', 'lock_timeout', '2s'),
                (5, 'inbox_reader', 'default_transaction_read_only', 'on'),
                (5, 'inbox_reader', 'statement_timeout', '5min'),  -- a report keeps dead rows as long as it runs
                (5, 'inbox_reader', 'transaction_timeout', '10min'),  -- Postgres 17
                (5, 'inbox_reader', 'idle_in_transaction_session_timeout', '1min'),
                (5, 'inbox_reader', 'lock_timeout', '2s')
        ), everyone AS (
            SELECT n, role, name, value FROM wanted
            UNION ALL
            SELECT n + 1, 'inbox_reader_without_payloads', name, value FROM wanted WHERE role = 'inbox_reader'
        )
        SELECT DISTINCT ON (l.rolname, w.name) l.rolname, w.name, w.value
        FROM everyone w
        JOIN pg_roles l ON l.rolname = w.role OR l.rolcanlogin AND NOT l.rolsuper AND pg_has_role(l.oid, w.role, 'MEMBER')
        WHERE w.name IN (SELECT s.name FROM pg_settings s)
        ORDER BY l.rolname, w.name, w.n
    LOOP
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET %s = %L', one.rolname, current_database(), one.name, one.value);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path FROM CURRENT', one.rolname, current_database());
    END LOOP;
    -- a transaction that its owner forgot would keep locks and dead rows for as long
    EXECUTE format(
        'ALTER ROLE %I IN DATABASE %I SET idle_in_transaction_session_timeout = ''1min''',
        (SELECT tableowner FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'inbox'), current_database()
    );
END $$;
COMMIT;
