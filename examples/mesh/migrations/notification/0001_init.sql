-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds.

-- What the customers were told: here that is the sending. A service that sends mail would have a worker read this table.
CREATE TABLE notifications (
    id       TEXT   PRIMARY KEY,
    order_id TEXT   NOT NULL,
    kind     TEXT   NOT NULL,
    text     TEXT   NOT NULL,
    sent_ms  BIGINT NOT NULL,
    UNIQUE (order_id, kind)               -- the last line of defence against telling twice
);
