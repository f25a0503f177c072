//! Fault points, at which a test can stop the process. Without the feature `fault-points` they do
//! nothing.

#[cfg(feature = "fault-points")]
use std::sync::Arc;

/// A boundary at which a process may crash.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::Db;
/// use buttress_durable::db::FaultPoint;
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// let db = Db::open(dir.path().join("orders.db")).await?;
/// let db = db.with_faults(|point| point == FaultPoint::BeforeCommit);
/// let tx = db.begin().await?;
/// // It never returns, as if the process had died: the test drops it.
/// assert!(tokio::time::timeout(Duration::from_millis(10), tx.commit()).await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "fault-points")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultPoint {
    /// Before a statement.
    Statement(&'static str),
    /// Before a commit. The transaction has no effect.
    BeforeCommit,
    /// After a commit, before its caller is informed.
    AfterCommit,
}

#[derive(Clone, Default)]
pub(super) struct Faults {
    #[cfg(feature = "fault-points")]
    crash: Option<Arc<dyn Fn(FaultPoint) -> bool + Send + Sync>>,
}

#[cfg(feature = "fault-points")]
impl Faults {
    pub(super) fn new(crash: impl Fn(FaultPoint) -> bool + Send + Sync + 'static) -> Self {
        Self { crash: Some(Arc::new(crash)) }
    }

    /// Never returns if the process is to crash. The test then drops the futures that wait here.
    async fn hit(&self, point: FaultPoint) {
        if self.crash.as_ref().is_some_and(|crash| crash(point)) {
            std::future::pending::<()>().await;
        }
    }

    pub(super) async fn statement(&self, sql: &'static str) {
        self.hit(FaultPoint::Statement(sql)).await;
    }

    pub(super) async fn before_commit(&self) {
        self.hit(FaultPoint::BeforeCommit).await;
    }

    pub(super) async fn after_commit(&self) {
        self.hit(FaultPoint::AfterCommit).await;
    }
}

#[cfg(not(feature = "fault-points"))]
impl Faults {
    pub(super) async fn statement(&self, _: &'static str) {}
    pub(super) async fn before_commit(&self) {}
    pub(super) async fn after_commit(&self) {}
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}
