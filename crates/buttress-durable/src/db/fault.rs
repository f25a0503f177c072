//! Where a test may stop the process. Without the feature `fault-points` there is nothing here but an empty value.

#[cfg(feature = "fault-points")]
use std::sync::Arc;

/// A boundary that a crash can fall on.
#[cfg(feature = "fault-points")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultPoint {
    /// Before a statement.
    Statement(&'static str),
    /// Before a commit: nothing of the transaction is there afterwards.
    BeforeCommit,
    /// After a commit, before anybody learns of it.
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

    /// Never returns once the process is to be dead. Whoever asked for that drops the futures that wait here.
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
