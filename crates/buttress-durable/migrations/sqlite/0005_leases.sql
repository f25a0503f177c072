-- The length with which a lease was written, in milliseconds. Members of a group may have leases of different lengths, for
-- example during a rolling update, and a lease that ends later than its length from now was written by a clock that was
-- ahead. NULL in rows of versions before this one. The same on both databases.
ALTER TABLE buttress_group ADD COLUMN lease_ms BIGINT;
ALTER TABLE buttress_group_member ADD COLUMN lease_ms BIGINT;
