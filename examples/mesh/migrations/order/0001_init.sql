-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds, money in cents, JSON as TEXT.

-- One row for each order. Its state is written before and after every step, so that whoever reads the row after a
-- crash knows which steps may have had an effect.
CREATE TABLE orders (
    id              TEXT   PRIMARY KEY,
    customer        TEXT   NOT NULL,
    total_cents     BIGINT NOT NULL,
    state           TEXT   NOT NULL CHECK (state IN
                        ('pending', 'reserved', 'charged', 'confirmed', 'cancelling', 'cancelled')),
    failure         TEXT,                         -- why it is being cancelled, as the customer was told
    idempotency_key TEXT   UNIQUE,                -- the client's key: a second request with it is the same order
    fingerprint     TEXT   NOT NULL,              -- what was asked, to refuse the same key with another body
    attempts        BIGINT NOT NULL DEFAULT 0,    -- failed attempts to undo, for the backoff
    retry_at_ms     BIGINT NOT NULL DEFAULT 0,    -- when to try to undo again
    created_ms      BIGINT NOT NULL,
    updated_ms      BIGINT NOT NULL
);
CREATE INDEX orders_by_state ON orders (state, retry_at_ms);

CREATE TABLE order_lines (
    order_id    TEXT   NOT NULL REFERENCES orders (id),
    sku         TEXT   NOT NULL,
    quantity    BIGINT NOT NULL CHECK (quantity > 0),
    price_cents BIGINT NOT NULL,                  -- of one piece, when the order was placed
    PRIMARY KEY (order_id, sku)
);
