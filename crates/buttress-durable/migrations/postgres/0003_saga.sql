-- PostgreSQL. The SQLite twin is the same.
-- Only adds, so that processes of the version before go on working beside those of this one.

-- Ids belong to their definition. Rows of this version have 'definition:id' in `id`, the id itself in `own_id`, and a
-- negative `version`: the version before would derive other idempotency keys for them, and does not find them so.
-- Rows of the version before keep their ids and their keys; `own_id` is NULL.
ALTER TABLE buttress_saga ADD COLUMN own_id TEXT;
-- What the definition wants to take part in: 1 skipping, 2 resolving.
ALTER TABLE buttress_saga ADD COLUMN hooks BIGINT NOT NULL DEFAULT 0;
-- Calls in a row that were not made, because of an outage. They are no attempts.
ALTER TABLE buttress_saga_step ADD COLUMN refused BIGINT NOT NULL DEFAULT 0;

CREATE UNIQUE INDEX buttress_saga_own ON buttress_saga ((COALESCE(own_id, id)), definition);
CREATE INDEX buttress_saga_listed ON buttress_saga (status, (COALESCE(own_id, id)), definition);
DROP INDEX buttress_saga_status;
