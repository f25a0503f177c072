-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds, money in cents.

-- One row for each order. How far it has come between 'pending' and its end, the tables of its saga know.
CREATE TABLE orders (
    id              TEXT   PRIMARY KEY,
    customer        TEXT   NOT NULL,
    total_cents     BIGINT NOT NULL,
    state           TEXT   NOT NULL CHECK (state IN ('pending', 'confirmed', 'cancelled')),
    failure         TEXT,                         -- why it was cancelled, as the customer was told
    idempotency_key TEXT   UNIQUE,                -- the client's key: a second request with it is the same order
    fingerprint     TEXT   NOT NULL,              -- what was asked, to refuse the same key with another body
    created_ms      BIGINT NOT NULL,
    updated_ms      BIGINT NOT NULL
);

CREATE TABLE order_lines (
    order_id    TEXT   NOT NULL REFERENCES orders (id),
    sku         TEXT   NOT NULL,
    quantity    BIGINT NOT NULL CHECK (quantity > 0),
    price_cents BIGINT NOT NULL,                  -- of one piece, when the order was placed
    PRIMARY KEY (order_id, sku)
);
