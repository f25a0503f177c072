-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds, money in cents.

CREATE TABLE accounts (
    id            TEXT   PRIMARY KEY,
    opening_cents BIGINT NOT NULL,                            -- never changes: the audit starts from here
    balance_cents BIGINT NOT NULL CHECK (balance_cents >= 0)  -- the last line of defence against overdrafts
);

-- One row for each idempotency key: the decision, made once. 'revoked' is the tombstone that a refund leaves when it
-- comes before its charge.
CREATE TABLE charges (
    key          TEXT   PRIMARY KEY,
    order_id     TEXT   NOT NULL,
    customer     TEXT   NOT NULL,
    amount_cents BIGINT NOT NULL,
    state        TEXT   NOT NULL CHECK (state IN ('charged', 'declined', 'refunded', 'revoked')),
    created_ms   BIGINT NOT NULL,
    updated_ms   BIGINT NOT NULL
);
CREATE INDEX charges_by_order ON charges (order_id);

-- Every movement of money, append only. Charges are positive, refunds negative: the sum is what the shop has earned.
CREATE TABLE ledger (
    id           TEXT   PRIMARY KEY,
    key          TEXT   NOT NULL REFERENCES charges (key),
    order_id     TEXT   NOT NULL,
    customer     TEXT   NOT NULL REFERENCES accounts (id),
    amount_cents BIGINT NOT NULL,
    at_ms        BIGINT NOT NULL
);
CREATE INDEX ledger_by_order ON ledger (order_id);

-- Opening balances of a small town. Pip is here to be declined.
INSERT INTO accounts (id, opening_cents, balance_cents) VALUES
    ('alice', 100000000000, 100000000000),
    ('bob',   100000000000, 100000000000),
    ('carol', 100000000000, 100000000000),
    ('dave',  100000000000, 100000000000),
    ('pip',            100,          100);
