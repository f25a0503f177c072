-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds.

-- What has been heard of each order. One row for both halves: whoever hears the second one waits for the first one's
-- transaction, and sees it. With a row for each half, two that come at the same time would both see one.
CREATE TABLE orders_heard_of (
    order_id     TEXT   PRIMARY KEY,
    confirmed_ms BIGINT,
    paid_ms      BIGINT
);

CREATE TABLE shipments (
    id         TEXT   PRIMARY KEY,
    order_id   TEXT   NOT NULL UNIQUE,   -- the last line of defence against a second parcel
    customer   TEXT   NOT NULL,
    created_ms BIGINT NOT NULL
);
