-- A key belongs to its customer: two customers may use the same one. The column holds 'customer:key', which is unique
-- because a customer's name has no colon. A key is removed when it is older than a day, and its order stays.
UPDATE orders SET idempotency_key = customer || ':' || idempotency_key WHERE idempotency_key IS NOT NULL;
CREATE INDEX orders_by_age_of_key ON orders (created_ms) WHERE idempotency_key IS NOT NULL;

-- Orders under way are counted before another one is stored.
CREATE INDEX orders_under_way ON orders (id) WHERE state = 'pending';
