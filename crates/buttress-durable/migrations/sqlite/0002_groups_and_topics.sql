-- SQLite. The PostgreSQL twin differs in the columns of the index only.

-- Separated by spaces: members of a group may have different topics, during a rolling update for example. Empty for a
-- member of a version that did not write them; it has all topics.
ALTER TABLE buttress_group_member ADD COLUMN topics TEXT NOT NULL DEFAULT '';
-- Since when the next record waits for a database or a service that is away, or for a version that knows it.
ALTER TABLE buttress_group ADD COLUMN waiting_since BIGINT;

-- The topic of the event, so that events of a topic that cannot be published are not read. Empty in rows of versions
-- that did not write it.
ALTER TABLE buttress_outbox ADD COLUMN topic TEXT NOT NULL DEFAULT '';
DROP INDEX buttress_outbox_unsent;
CREATE INDEX buttress_outbox_unsent ON buttress_outbox (topic, seq) WHERE sent_at IS NULL AND refused IS NULL;
