//! The server's clock, without asking for it each time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::database::{Database, args};
use super::{Db, DbError};
use crate::clock::{Timestamp, monotonic};

/// What the server's clock showed, and when. Between two measurements the monotonic clock counts.
#[derive(Debug, Default)]
pub(super) struct ServerTime(Mutex<Option<(Timestamp, Instant)>>);

/// Age at which a measurement is repeated. Clocks are slewed by at most 500 ppm, and a step of the
/// server's clock takes effect after this time.
const FRESH: Duration = Duration::from_secs(5);

impl ServerTime {
    /// Returns the server's time, or the process's own where there is no server.
    pub(super) async fn now<D: Database>(&self, db: &Db<D>) -> Result<Timestamp, DbError> {
        let Some(sql) = D::SERVER_TIME else { return Ok(db.now()) };
        let measured = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, at)) = measured
            && monotonic() - at < FRESH
        {
            return Ok(time.plus(monotonic() - at));
        }
        let rows = db.read(sql, args![]).await?;
        let Some(row) = rows.first() else { return Ok(db.now()) };
        let time = Timestamp::from_millis(D::int(row, 0)?);
        // Taken after the answer, so that the result is late rather than early: a lease then seems
        // to last longer to others, and shorter to its owner.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, monotonic()));
        Ok(time)
    }
}
