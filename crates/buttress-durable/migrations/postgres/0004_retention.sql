-- Indexes by which old rows are found in small numbers. The same on both databases.

-- By consumer: each has an age of its own. Replaces the one by age only.
CREATE INDEX buttress_inbox_age ON buttress_inbox (consumer, handled_at);
DROP INDEX buttress_inbox_handled;
CREATE INDEX buttress_saga_ended ON buttress_saga (updated_at) WHERE status IN ('completed', 'compensated', 'resolved');
