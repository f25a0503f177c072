-- Portable between SQLite and PostgreSQL: ids TEXT, times in milliseconds.

CREATE TABLE customers (
    id    TEXT PRIMARY KEY,
    name  TEXT NOT NULL,
    since TEXT NOT NULL
);

CREATE TABLE reviews (
    id         TEXT   PRIMARY KEY,
    sku        TEXT   NOT NULL,
    author     TEXT   NOT NULL,
    stars      BIGINT NOT NULL CHECK (stars BETWEEN 1 AND 5),
    text       TEXT   NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX reviews_by_sku ON reviews (sku);

INSERT INTO customers (id, name, since) VALUES
    ('alice', 'Alice Archer', '2011-03-02'),
    ('bob',   'Bob Baker',    '2012-07-19'),
    ('carol', 'Carol Cooper', '2014-01-30'),
    ('dave',  'Dave Draper',  '2015-11-08'),
    ('pip',   'Pip',          '2019-05-05');

INSERT INTO reviews (id, sku, author, stars, text, created_ms) VALUES
    ('r1', 'tea', 'bob',   5, 'Strong and honest.',          1400000000000),
    ('r2', 'mug', 'carol', 4, 'Holds tea. Slightly crooked.', 1420000000000);
