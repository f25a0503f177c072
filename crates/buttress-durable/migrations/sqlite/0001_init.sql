-- SQLite. The PostgreSQL twin differs in the types of `seq` and `payload` only.
-- Ids and JSON as TEXT, moments in milliseconds since 1970.

-- The right to be the only one at something. Every owner's generation is one higher than the last one's.
CREATE TABLE buttress_lease (
    name       TEXT   PRIMARY KEY,
    owner      TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- Events on their way to the bus, written in the transaction of what they tell of.
CREATE TABLE buttress_outbox (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id   TEXT   NOT NULL UNIQUE,
    shard      BIGINT NOT NULL,          -- a hash of the key: one relay at a time for each shard
    payload    BLOB   NOT NULL,
    created_at BIGINT NOT NULL,
    sent_at    BIGINT,                   -- NULL until the bus has it
    refused    TEXT                      -- why the bus will never take it: parked until somebody decides
);
CREATE INDEX buttress_outbox_unsent ON buttress_outbox (shard, seq) WHERE sent_at IS NULL AND refused IS NULL;
CREATE INDEX buttress_outbox_sent ON buttress_outbox (sent_at) WHERE sent_at IS NOT NULL;

-- What each consumer has handled.
CREATE TABLE buttress_inbox (
    consumer   TEXT   NOT NULL,
    event_id   TEXT   NOT NULL,
    handled_at BIGINT NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX buttress_inbox_handled ON buttress_inbox (handled_at);

-- The embedded log: the next position of every partition, and its records.
CREATE TABLE buttress_log_head (
    topic TEXT   NOT NULL,
    part  BIGINT NOT NULL,
    next  BIGINT NOT NULL,
    PRIMARY KEY (topic, part)
);
CREATE TABLE buttress_log (
    topic        TEXT   NOT NULL,
    part         BIGINT NOT NULL,
    position     BIGINT NOT NULL,
    dedup        TEXT   NOT NULL,        -- the event's id: published again, it is not appended again
    payload      BLOB   NOT NULL,
    dead_letter  TEXT,                   -- JSON: where it failed and why, on dead-letter topics
    published_at BIGINT NOT NULL,
    PRIMARY KEY (topic, part, position),
    UNIQUE (topic, dedup)
);

-- How far each group has come, and which of its members is at it.
CREATE TABLE buttress_group (
    name       TEXT   NOT NULL,
    topic      TEXT   NOT NULL,
    part       BIGINT NOT NULL,
    position   BIGINT NOT NULL,          -- committed: the next record to handle
    attempts   BIGINT NOT NULL,          -- failed attempts at that record
    retry_at   BIGINT NOT NULL,
    owner      TEXT,
    generation BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (name, topic, part)
);
CREATE TABLE buttress_group_member (
    name       TEXT   NOT NULL,
    member     TEXT   NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (name, member)
);

-- Sagas, and a row for each step that has begun.
CREATE TABLE buttress_saga (
    id          TEXT   PRIMARY KEY,
    definition  TEXT   NOT NULL,
    version     BIGINT NOT NULL,
    status      TEXT   NOT NULL CHECK (status IN
                    ('running', 'compensating', 'completed', 'compensated', 'stuck', 'resolved')),
    step        BIGINT NOT NULL,         -- the step to run, or to undo, next
    data        TEXT   NOT NULL,
    failure     TEXT,                    -- JSON: why it is undone
    stuck       TEXT,                    -- JSON: where and why it stands still
    trace       TEXT,                    -- JSON
    deadline_at BIGINT,
    wake_at     BIGINT NOT NULL,         -- not before then
    recoveries  BIGINT NOT NULL,         -- times an owner was lost without any progress
    owner       TEXT,                    -- NULL when it was given back properly
    generation  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL
);
CREATE INDEX buttress_saga_due ON buttress_saga (definition, version, wake_at)
    WHERE status IN ('running', 'compensating');
CREATE INDEX buttress_saga_status ON buttress_saga (status, id);
CREATE TABLE buttress_saga_step (
    saga_id    TEXT   NOT NULL REFERENCES buttress_saga (id) ON DELETE CASCADE,
    step       BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    state      TEXT   NOT NULL CHECK (state IN
                    ('started', 'waiting', 'done', 'failed', 'undoing', 'undone', 'skipped')),
    attempts   BIGINT NOT NULL,          -- of the action, or once it is being undone of the compensation
    uncertain  BIGINT NOT NULL,          -- 1 if an attempt may have had an effect nobody told us of
    error      TEXT,
    started_at BIGINT NOT NULL,
    ended_at   BIGINT,
    PRIMARY KEY (saga_id, step)
);
