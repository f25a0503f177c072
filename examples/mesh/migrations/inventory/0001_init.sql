-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds, money in cents.

CREATE TABLE products (
    sku         TEXT   PRIMARY KEY,
    name        TEXT   NOT NULL,
    price_cents BIGINT NOT NULL CHECK (price_cents > 0),
    initial     BIGINT NOT NULL,                        -- never changes: the audit starts from here
    on_hand     BIGINT NOT NULL CHECK (on_hand >= 0),   -- the last line of defence against overselling
    reserved    BIGINT NOT NULL CHECK (reserved >= 0),
    sold        BIGINT NOT NULL CHECK (sold >= 0)
);

-- One row for each idempotency key. 'revoked' is the tombstone that a release leaves when it comes first.
CREATE TABLE reservations (
    key        TEXT   PRIMARY KEY,
    order_id   TEXT   NOT NULL,
    state      TEXT   NOT NULL CHECK (state IN ('reserved', 'sold', 'out_of_stock', 'released', 'revoked')),
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
);
CREATE INDEX reservations_by_order ON reservations (order_id);

CREATE TABLE reservation_lines (
    key      TEXT   NOT NULL REFERENCES reservations (key),
    sku      TEXT   NOT NULL REFERENCES products (sku),
    quantity BIGINT NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (key, sku)
);

-- The shelf at opening time. The lamp is here to be out of stock.
INSERT INTO products (sku, name, price_cents, initial, on_hand, reserved, sold) VALUES
    ('tea',    'Assam tea, 250 g',   790, 1000000, 1000000, 0, 0),
    ('mug',    'Stoneware mug',     1450, 1000000, 1000000, 0, 0),
    ('kettle', 'Copper kettle',     8900, 1000000, 1000000, 0, 0),
    ('honey',  'Heather honey',      620, 1000000, 1000000, 0, 0),
    ('lamp',   'Reading lamp',     12500,       0,       0, 0, 0);
